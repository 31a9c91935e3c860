"""Issue 5, line 3: all of HAM10000, five folds by lesion, ResNet50 from ImageNet weights; then the test part, once.

Each fold is a proof's work of half an hour: what its model says of the images that it was held out from is kept in EVIDENCE
(a table of logits, and a JSON file of how it was made), and a proof that is interrupted goes on with the folds that this
code has not made yet. Weights, images, and which image a row is of, are kept nowhere.

`python -m tests.proofs.issue5_line3` prints the table of docs/results.md from EVIDENCE alone.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pandas as pd

from dermaflow.artifacts import read_json
from dermaflow.params import Params, load_params
from dermaflow.wording import in_words
from tests.proofs.clone import SHARED, imagenet_weights
from tests.proofs.measuring import Prepared, keep_evidence, place_of, stands, unnamed, write_told
from tests.proofs.prove import ROOT

BOUND = (
    "all of HAM10000, lesion-grouped, ResNet50 with ImageNet weights on 2 cores: 5-fold out-of-fold balanced accuracy at least "
    "0.72 and macro AUROC at least 0.94, fold seed 20240101, at most 45 minutes a fold, shared features counted once"
)
LEAST = {"balanced_accuracy": 0.72, "auroc": 0.94}
CHOSEN_WITH = 0  # the fold whose held-out images were looked at while the recipe was chosen
TOLD = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "accuracy": "accuracy"}
MINUTES, FOLDS, SEED = 45.0, 5, 20240101
EVIDENCE = ROOT / "docs" / "evidence" / "issue5_line3"
FINAL, FOLDED = "final", f"split.folds={FOLDS}"


def prove() -> tuple[str, bool]:
    """Five folds and the final model, by the profile `tuned`; figures are computed afresh from the kept logits."""
    weights = imagenet_weights("resnet50")
    if weights is None:
        return "the real images (../shared) are not here", False
    os.chdir(ROOT)
    settings = (f"data.source={SHARED / 'data' / 'ham10000'}", FOLDED, f"train.weights.resnet50={weights}")
    images = Prepared(place_of("line3", ours()), load_params("tuned", settings))
    assert images.params.split.seed == SEED
    for name in [*map(str, range(FOLDS)), FINAL]:
        keep(name, images)
    told, passed = judged(images)
    facts = [read_json(EVIDENCE / f"{name}.json") for name in (*range(FOLDS), FINAL)]
    shared = sum(each["feature_minutes"] for each in facts)
    minutes = [each["minutes"] - each["feature_minutes"] for each in facts[:FOLDS]]
    quick = max(minutes) <= MINUTES and (sum(minutes) + shared) / FOLDS <= MINUTES
    in_time = f"minutes a fold {', '.join(f'{each:.0f}' for each in minutes)}, features of all {shared:.0f}"
    return f"{told}; {in_time}", passed and quick


def ours() -> Params:
    """The parameters on any machine: without paths."""
    return load_params("tuned", (FOLDED,), ROOT)


def model(name: str, images: Prepared) -> tuple[Path, dict[str, Any]]:
    """Train, and judge on test (of a fold: its own images); the Evaluation artifact, and how it was made."""
    from components.evaluate.core import evaluate

    started, fold = time.monotonic(), None if name == FINAL else int(name)
    here, info = images.model(name, "resnet50", images.params, fold)
    splits = images.splits if fold is None else here / "splits"
    evaluate(images.dataset, splits, images.masks, here / "model", images.params.evaluate, here / "evaluation")
    features = read_json(here / "history/history.json")["feature_seconds"]
    told = {"minutes": (time.monotonic() - started) / 60, "feature_minutes": features / 60}
    facts = ("weights_digest", "adjustment", "temperature", "kept_epochs", "epochs", "device", "environment")
    return here / "evaluation", told | {fact: info[fact] for fact in facts}


def keep(name: str, images: Prepared) -> None:
    """See that the evidence of a model is there and of this code."""
    params = ours()
    if stands(EVIDENCE / f"{name}.json", params):
        return
    evaluation, facts = model(name, images)
    write_told(unnamed(pd.read_parquet(evaluation / "predictions.parquet"), name), table_of(name))
    keep_evidence(EVIDENCE / f"{name}.json", facts, params)  # last: it says that the table is whole


def table_of(name: str) -> Path:
    """The table of a model's logits."""
    return EVIDENCE / f"{name}.csv"


def judged(images: Prepared) -> tuple[str, bool]:
    """The figures out of fold and of the test part, and whether those out of fold hold."""
    from dermaflow.contracts import DEVELOPED_ON, read_splits

    pooled, _, final = (found["test"] for found in kept_figures())
    whole = pooled["n_images"] == int(read_splits(images.splits)["split"].isin(DEVELOPED_ON).sum())

    def say(found: dict[str, Any]) -> str:
        return ", ".join(f"{text} {in_words(found['overall'][name])}" for name, text in TOLD.items())

    holds = whole and all(pooled["overall"][name]["estimate"] >= least for name, least in LEAST.items())
    return f"out of fold, {pooled['n_images']:,} images: {say(pooled)}; test part, final model: {say(final)}", holds


def kept_figures() -> list[dict[str, Any]]:
    """Of all folds together, of those that had no part in choosing the recipe, and of the final model: from kept logits."""
    from dermaflow.contracts import logit_columns
    from dermaflow.figures import figures
    from dermaflow.folds import FOLD

    folds = pd.concat([pd.read_csv(table_of(str(fold))).assign(**{FOLD: fold}) for fold in range(FOLDS)], ignore_index=True)
    (prefix,) = logit_columns([""])
    classes = [name.removeprefix(prefix) for name in folds if name.startswith(prefix)]
    parts = (folds, folds[folds[FOLD] != CHOSEN_WITH], pd.read_csv(table_of(FINAL)))
    return [figures(each, classes, ours().evaluate) for each in parts]


def table() -> str:
    """Each fold, all of them together, and the final model on the test part, in Markdown."""
    pooled, unseen, final = kept_figures()
    titles = ("out of fold, together", f"the same without fold {CHOSEN_WITH}", "test part, final model")
    lines = [f"| | images | {' | '.join(TOLD.values())} | minutes, without features |", "|---|---|---|---|---|---|"]
    for row in pooled["by_fold"]:
        facts = read_json(EVIDENCE / f"{row['fold']}.json")
        cells = (f"{row[name]:.3f}" if name in row else "" for name in TOLD)
        minutes = facts["minutes"] - facts["feature_minutes"]
        lines.append(f"| fold {row['fold']} | {row['n_images']:,} | {' | '.join(cells)} | {minutes:.1f} |")
    for title, found in zip(titles, (pooled, unseen, final), strict=True):
        cells = (in_words(found["test"]["overall"][name]) for name in TOLD)
        lines.append(f"| {title} | {found['test']['n_images']:,} | {' | '.join(cells)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
