"""Issue 5, line 3: all of HAM10000, five folds by lesion, ResNet50 from ImageNet weights; then the test part, once.

Each fold is a proof's work of half an hour: what its model says of the images that it was held out from is kept in EVIDENCE
(a table of logits, and a JSON file of how it was made), and a proof that is interrupted goes on with the folds that this
code has not made yet. Weights and images are kept nowhere.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.proofs.clone import PLACE, SHARED, imagenet_weights
from tests.proofs.prove import ROOT, same_code

BOUND = (
    "all of HAM10000, lesion-grouped, ResNet50 with ImageNet weights on 2 cores: 5-fold out-of-fold balanced accuracy at least "
    "0.72 and macro AUROC at least 0.94, fold seed 20240101, at most 45 minutes a fold, shared features counted once"
)
LEAST = {"balanced_accuracy": 0.72, "auroc": 0.94}
MINUTES, FOLDS, SEED = 45.0, 5, 20240101
EVIDENCE = ROOT / "docs" / "evidence" / "issue5_line3"
FINAL = "final"


def prove() -> tuple[str, bool]:
    """Five folds and the final model, by the profile `tuned`; figures are computed afresh from the kept logits."""
    weights = imagenet_weights("resnet50")
    if weights is None:
        return "the real images (../shared) are not here", False
    os.chdir(ROOT)
    work = Work(PLACE / f"line3-{os.environ['PROVED_COMMIT'][:12]}", weights)
    for name in [*map(str, range(FOLDS)), FINAL]:
        kept(name, work)
    told, passed = judged(work)
    minutes = [made(str(fold))["minutes"] for fold in range(FOLDS)]
    return f"{told}; minutes a fold {', '.join(f'{each:.0f}' for each in minutes)}", passed and max(minutes) <= MINUTES


class Work:
    """The pipeline's own steps on the real images, up to a split with folds; made when they are first needed."""

    def __init__(self, folder: Path, weights: Path) -> None:
        from dermaflow.params import load_params

        self.folder = folder
        settings = (f"data.source={SHARED / 'data' / 'ham10000'}", f"split.folds={FOLDS}", f"train.weights.resnet50={weights}")
        self.params = load_params("tuned", settings)
        assert self.params.split.seed == SEED

    def artifact(self, name: str) -> Path:
        """dataset, splits or masks."""
        from components.ingest.core import ingest
        from components.segment.core import segment
        from components.split.core import split

        makers: dict[str, Callable[[Path], Any]] = {
            "dataset": lambda target: ingest(self.params.data, target, self.folder / "state"),
            "splits": lambda target: split(self.artifact("dataset"), self.params.split, target),
            "masks": lambda target: segment(self.artifact("dataset"), self.params.segment, target),
        }
        if not (self.folder / name).exists():
            makers[name](self.folder / name)
        return self.folder / name

    def model(self, name: str) -> tuple[Path, dict[str, Any]]:
        """Train, and judge on test (of a fold: its own images); the Evaluation artifact, and how it was made."""
        from components.augment.core import augment
        from components.evaluate.core import evaluate
        from components.fold.core import hold_out
        from components.train.core import Places, train

        dataset, masks, splits = self.artifact("dataset"), self.artifact("masks"), self.artifact("splits")
        here, params = self.folder / name, self.params
        shutil.rmtree(here, ignore_errors=True)  # one that was interrupted begins anew: its minutes are to be all of them
        started = time.monotonic()
        if name != FINAL:
            hold_out(splits, int(name), here / "splits")
            splits = here / "splits"
        augment(dataset, splits, params.augment, params.mixup, here / "plan")
        targets = here / "model", here / "history"
        places = Places(self.folder / "cache", here / "state")
        info = train(dataset, splits, here / "plan", masks, "resnet50", params.train, *targets, places=places)
        evaluate(dataset, splits, masks, here / "model", params.evaluate, here / "evaluation")
        facts = ("weights_digest", "adjustment", "temperature", "best_epoch", "epochs", "device", "environment")
        return here / "evaluation", {"minutes": (time.monotonic() - started) / 60, **{fact: info[fact] for fact in facts}}


def kept(name: str, work: Work) -> None:
    """See that the evidence of a model is there and of this code."""
    if (EVIDENCE / f"{name}.json").exists() and same_code(made(name)["commit"]):
        return
    evaluation, facts = work.model(name)
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    (EVIDENCE / f"{name}.parquet").write_bytes((evaluation / "predictions.parquet").read_bytes())
    told = {"commit": os.environ["PROVED_COMMIT"], **facts}
    (EVIDENCE / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")  # last: it says that the table is whole


def made(name: str) -> dict[str, Any]:
    """How a model of the evidence was made."""
    told: dict[str, Any] = json.loads((EVIDENCE / f"{name}.json").read_text())
    return told


def judged(work: Work) -> tuple[str, bool]:
    """The figures out of fold and of the test part, and whether those out of fold hold."""
    import pandas as pd

    from dermaflow.contracts import DEVELOPED_ON, read_splits
    from dermaflow.dataset import Dataset
    from dermaflow.figures import figures
    from dermaflow.folds import FOLD

    classes, params = Dataset.open(work.artifact("dataset")).classes, work.params.evaluate
    tables = [pd.read_parquet(EVIDENCE / f"{fold}.parquet").assign(**{FOLD: fold}) for fold in range(FOLDS)]
    folds = figures(pd.concat(tables, ignore_index=True), classes, params)["test"]["overall"]
    final = figures(pd.read_parquet(EVIDENCE / f"{FINAL}.parquet"), classes, params)["test"]["overall"]
    splits = read_splits(work.artifact("splits"))
    images = sum(int((table["split"] == "test").sum()) for table in tables)
    whole = images == int(splits["split"].isin(DEVELOPED_ON).sum())

    def say(found: dict[str, Any]) -> str:
        names = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "accuracy": "accuracy"}
        parts = ((text, found[name]) for name, text in names.items())
        return ", ".join(f"{text} {value['estimate']:.3f} ({value['low']:.3f} to {value['high']:.3f})" for text, value in parts)

    holds = whole and all(folds[name]["estimate"] >= least for name, least in LEAST.items())
    return f"out of fold, {images:,} images: {say(folds)}; test part, final model: {say(final)}", holds
