"""Issue 4, split: on all of HAM10000 with its near duplicates; shares, leakage, growth, the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from components.split.core import split
from dermaflow.artifacts import new_artifact, open_artifact, write_json
from dermaflow.contracts import DEVELOPED_ON, SPLIT_NAMES, SPLITS, read_info, read_splits
from dermaflow.dataset import KIND, Dataset
from dermaflow.params import SplitParams, load_params
from tests.proofs.clone import SHARED
from tests.proofs.measuring import timed
from tests.proofs.prove import ROOT
from tests.workspace import DERMAFLOW, make_workspace

BOUND = (
    "HAM10000, 80 / 10 / 10 by lesion and near-duplicate group: each class within one percentage point; no test image with a "
    "relative in train, and about 38.5 % (melanoma 68 %) by a random image split; grown from nine tenths of the lesions every "
    "side is kept, test set 1 keeps its digest and nothing ever in test is trained on; the same bytes in any order of rows"
)


def prove() -> tuple[str, bool]:
    """Ingest the real images once, then split them in every way."""
    if not SHARED.exists():
        return "the real images (../shared) are not here", False
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="dermaflow-proof-") as scratch:
        folder = Path(scratch)
        workspace = make_workspace(folder / "workspace").path
        source = SHARED / "data" / "ham10000"
        _, _, done = timed([str(DERMAFLOW), "data", "prepare", "--set", f"data.source={source}", "--json"], workspace)
        if done.returncode:
            return done.stderr[-500:], False
        return judged(workspace / "artifacts" / "dataset", folder)


def judged(dataset: Path, folder: Path) -> tuple[str, bool]:
    """Figure and verdict for a Dataset."""
    params = load_params("default").split.model_copy(update={"previous": "none"})
    ours = split(dataset, params, folder / "ours")
    shuffled = changed(dataset, folder / "shuffled", lambda rows: rows.sample(frac=1, random_state=5))
    split(shuffled, params, folder / "again")
    same = open_artifact(folder / "ours", SPLITS).digest == open_artifact(folder / "again", SPLITS).digest
    leaks = [random_leakage(dataset, params, seed, folder) for seed in range(5)]
    random, melanoma = (sum(leak[name]["share"] for leak in leaks) / len(leaks) for name in ("all", "mel"))
    kept, never, numbers = growth(dataset, params, folder)
    off = deviation(read_splits(folder / "ours"))
    own = ours["leakage"]["all"]["with_relative_in_train"]
    expected = {name: ours["leakage"][name]["random_share"] for name in ("all", "mel")}
    figure = (
        f"largest deviation {100 * off:.2f} points; {own} of {ours['leakage']['all']['test_images']} test images with a "
        f"relative in train; random split: {random:.1%} (melanoma {melanoma:.1%}) over five seeds, expected "
        f"{expected['all']:.1%} ({expected['mel']:.1%}); grown: sides kept {kept}, test sets {numbers}, never trained on "
        f"{never}; same bytes {same}"
    )
    about = abs(random - 0.385) < 0.02 and abs(melanoma - 0.68) < 0.04
    return figure, off < 0.01 and own == 0 and about and kept and never and same and numbers == [1, 2]


def deviation(table: pd.DataFrame) -> float:
    """Largest distance of a class's share in a split from what was asked."""
    counts = table[table["split"].isin(SPLIT_NAMES)].groupby(["label", "split"]).size().unstack()
    asked = pd.Series({"train": 0.8, "validation": 0.1, "test": 0.1})
    return float((counts.div(counts.sum(axis=1), axis=0) - asked).abs().max().max())


def random_leakage(dataset: Path, params: SplitParams, seed: int, folder: Path) -> dict[str, Any]:
    """The audit of a random split by image."""
    random = params.model_copy(update={"strategy": "random", "seed": seed})
    audit: dict[str, Any] = split(dataset, random, folder / f"random-{seed}")["leakage"]
    return audit


def growth(dataset: Path, params: SplitParams, folder: Path) -> tuple[bool, bool, list[int]]:
    """Nine tenths of the lesions, then all: sides kept, nothing ever in test trained on, the numbers of the test sets."""
    lesions = Dataset.open(dataset).manifest["lesion_id"].drop_duplicates().sample(frac=0.9, random_state=1)
    fewer = changed(dataset, folder / "fewer", lambda rows: rows[rows["lesion_id"].isin(lesions)])
    split(fewer, params, folder / "first")
    info = split(dataset, params, folder / "second", folder / "first")
    before, after = read_splits(folder / "first"), read_splits(folder / "second")
    both = before.merge(after, on="image_id", suffixes=("", "_now"))
    moved = (both["split"] != both["split_now"]) & (both["split_now"] != "excluded")
    test = before[before["split"] == "test"]
    developed = after[after["split"].isin(DEVELOPED_ON)]
    never = not set(test["source_digest"]) & set(developed["source_digest"])
    never &= not set(test["lesion_id"]) & set(developed["lesion_id"])
    frozen = info["test_sets"][0]["digest"] == read_info(folder / "first", SPLITS)["test_set"]["digest"]
    members = set(test["image_id"]) <= set(after.loc[after["split"] == "test", "image_id"])
    return not moved.any() and frozen and members, never, [entry["version"] for entry in info["test_sets"]]


def changed(dataset: Path, target: Path, change: Any) -> Path:
    """A Dataset with other rows in its manifest; its shards are the same files."""
    opened = Dataset.open(dataset)
    with new_artifact(target, KIND) as folder:
        rows = change(opened.manifest)
        rows.to_parquet(folder / "manifest.parquet", index=False)
        pairs = pd.read_parquet(dataset / "neighbours.parquet")
        there = set(rows["image_id"])
        pairs = pairs[pairs["image_a"].isin(there) & pairs["image_b"].isin(there)]
        pairs.to_parquet(folder / "neighbours.parquet", index=False)
        shutil.copyfile(dataset / "rejects.parquet", folder / "rejects.parquet")
        digest = opened.content_digest if len(rows) == len(opened.manifest) else "sha256:fewer"
        write_json(folder / "dataset.json", json.loads(json.dumps({**opened.info, "content_digest": digest})))
    return target
