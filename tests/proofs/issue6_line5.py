"""Issue 6, line 5: a real model explained on 200 real test images, within its time.

The model is the profile `tuned`'s on the default split, trained where it is not here yet by this code. What the explanation
says, without maps, pictures and names of images, is kept in EVIDENCE; `python -m tests.proofs.issue6_line5` prints the table of
docs/results.md from it.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd

from components.explain.core import explain
from dermaflow.artifacts import read_json
from dermaflow.figures import TEST
from dermaflow.params import Params, load_params
from dermaflow.wording import in_words
from tests.proofs.clone import SHARED, imagenet_weights
from tests.proofs.measuring import Prepared, keep_evidence, place_of
from tests.proofs.prove import ROOT

BOUND = (
    "ResNet50 on real HAM10000, 2 cores, within 40 minutes: 200 test images attributed; insertion and deletion on 50 images in "
    "10 steps, stability on 30, randomisation on 20 in 5 stages, the second method on 5; n with each figure in docs/results.md"
)
MINUTES, IMAGES = 40.0, 200
SAMPLES = {"insertion": 50, "stability": 30, "agreement": 5}  # images that a measure is to be known of
STEPS, STAGES, SHUFFLED = 10, 5, 20
EVIDENCE = ROOT / "docs" / "evidence" / "issue6_line5.json"
SHOWN = {
    "concentration": "share of attribution in the lesion / share of area",
    "baseline_concentration": "the same of a centred Gaussian",
    "on_lesion": "evidence for the predicted class on the lesion, above even spread",
    "pointing_hit": "pointing game, hits",
    "centre_hit": "the image's middle, hits",
    "insertion": "insertion, area under the probability",
    "insertion_over_random": "more than in random order",
    "insertion_over_centre": "more than from the middle outwards",
    "deletion": "deletion, area under the probability",
    "deletion_under_random": "less than in random order",
    "deletion_under_centre": "less than from the middle outwards",
    "stability": "rank correlation to maps of another background",
    "agreement": "rank correlation to Partition SHAP's maps",
}


def prove() -> tuple[str, bool]:
    """Explain the model, timed; figures and their n."""
    weights = imagenet_weights("resnet50")
    if weights is None:
        return "the real images (../shared) are not here", False
    settings = (f"data.source={SHARED / 'data' / 'ham10000'}", f"train.weights.resnet50={weights}", f"explain.images={IMAGES}")
    params, anywhere = load_params("tuned", settings, ROOT), load_params("tuned", root=ROOT)
    images = Prepared(place_of("explained", anywhere), params)
    here = model(images, params)
    for rest in ("explanation", "state-of-explain"):
        shutil.rmtree(here / rest, ignore_errors=True)  # of one that was interrupted: its time is to be all of it
    started = time.monotonic()
    told = explain(
        images.dataset,
        images.splits,
        images.masks,
        here / "model",
        here / "evaluation",
        params.explain,
        here / "explanation",
        state=here / "state-of-explain",
    )
    minutes = (time.monotonic() - started) / 60
    kept = {"summary": told["summary"], "randomisation": told["checks"]["randomisation"]}  # and no image's name
    keep_evidence(EVIDENCE, {"minutes": minutes, "n": told["n"], "additivity": told["additivity"], **kept}, anywhere)
    overall, stages = told["summary"]["overall"], kept["randomisation"]["stages"]
    counts = {name: overall[name]["n"] for name in SAMPLES}
    shuffled = [stage["similarity"]["n"] for stage in stages]
    sides = set(pd.read_parquet(here / "explanation" / "attributions.parquet", columns=["split"])["split"])
    whole = told["n"] == IMAGES and sides == {TEST} and counts == SAMPLES and told["checks"]["insertion"]["steps"] == STEPS
    whole &= shuffled == [SHUFFLED] * STAGES
    shown = table(kept) in (ROOT / "docs" / "results.md").read_text()
    figure = (
        f"{minutes:.1f} minutes for {told['n']} images; of {', '.join(f'{name} {n}' for name, n in counts.items())}, shuffled "
        f"{shuffled}; median additivity error {told['additivity']['median']:.1e}; the document shows the table: {shown}"
    )
    return figure, minutes <= MINUTES and whole and shown


def model(images: Prepared, params: Params) -> Path:
    """The folder of the trained and evaluated model."""
    from components.evaluate.core import evaluate

    here = images.folder / "resnet50"
    if not (here / "evaluation").exists():
        images.model("resnet50", "resnet50", params)
        evaluate(images.dataset, images.splits, images.masks, here / "model", params.evaluate, here / "evaluation")
    return here


def table(explained: dict[str, Any]) -> str:
    """What the maps are worth, in Markdown: over all images, correct and wrong ones, with n beside each figure."""
    parts = [explained["summary"][name] for name in ("overall", "correct", "wrong")]
    lines = ["| figure | all | correct | wrong |", "|---|---|---|---|"]
    for name, title in SHOWN.items():
        cells = (f"{in_words(part[name])}, n = {part[name]['n']}" for part in parts)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    for stage in explained["randomisation"]["stages"]:
        similar = stage["similarity"]
        title = f"rank correlation to maps with {stage['stage']} of {STAGES} parts of the network shuffled"
        lines.append(f"| {title} | {in_words(similar)}, n = {similar['n']} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(read_json(EVIDENCE)))
