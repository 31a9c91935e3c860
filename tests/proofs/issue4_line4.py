"""Issue 4, the paper profile: its totals and counts on the real images, its leakage, and its mark everywhere."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from components.balance.core import MARK, balance
from components.ingest.core import ingest
from components.split.core import split
from dermaflow.dataset import Dataset
from dermaflow.params import load_params
from tests.proofs.clone import SHARED
from tests.proofs.measuring import pytest_here
from tests.proofs.prove import ROOT

BOUND = (
    "eight classes of HAM10000, each with exactly the study's total and its counts in train, validation and test; every df "
    "and vasc test image has a relative in train; marked in manifest, splits, report and registry, and never promoted"
)
TABLE = {  # the study's: train, validation, test
    "akiec": (799, 100, 100), "bcc": (780, 98, 98), "bkl": (800, 100, 100), "mel": (800, 100, 100),
    "df": (797, 100, 100), "normal": (796, 100, 100), "nv": (800, 100, 100), "vasc": (786, 98, 98),
}  # fmt: skip


def prove() -> tuple[str, bool]:
    """Balance and split the real images; then a whole run on phantoms, for what it leaves behind."""
    if not SHARED.exists():
        return "the real images (../shared) are not here", False
    os.chdir(ROOT)
    params = load_params("paper", [f"data.source={SHARED / 'data' / 'ham10000'}"])
    with tempfile.TemporaryDirectory(prefix="dermaflow-proof-") as scratch:
        folder = Path(scratch)
        ingest(params.data, folder / "originals")
        balance(folder / "originals", params.augment, folder / "source")
        ingest(params.data.model_copy(update={"source": str(folder / "source")}), folder / "dataset")
        info = split(folder / "dataset", params.split, folder / "splits")
        dataset = Dataset.open(folder / "dataset")
        found = {
            name: tuple(info["counts"][side]["images_per_class"][name] for side in ("train", "validation", "test"))
            for name in dataset.classes
        }
        marked = dataset.mark == info["mark"] == MARK and not info["promotable"]
        rejects = len(dataset.rejects)
    leaks = info["leakage"]
    told, passed = pytest_here("tests/e2e/test_paper.py", "tests/unit/test_balance.py")
    shares = ", ".join(f"{name} {audit['share']:.1%}" for name, audit in leaks.items())
    figure = (
        f"{sum(map(sum, found.values())):,} images, {rejects} rejected, counts as in the study: {found == TABLE}; test images "
        f"with a relative in train: {shares}; marked: {marked}; {told}"
    )
    whole = leaks["df"]["share"] == leaks["vasc"]["share"] == 1
    return figure, found == TABLE and rejects == 0 and whole and marked and passed
