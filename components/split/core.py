"""Split: assign lesions, never single images, to train, validation and test, stratified by class and group size."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermaflow.artifacts import json_digest, new_artifact, write_json
from dermaflow.contracts import SPLIT_NAMES, SPLITS
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.params import SplitParams

ALGORITHM = "proportional-by-class-and-size-1"  # raise the number when the assignment changes


def split(dataset: Path, params: SplitParams, target: Path) -> dict[str, Any]:
    """Write the Splits artifact of a Dataset.

    Returns
    -------
    The content of splits.json: counts of images and lesions per class and split, the leakage audit, seed, algorithm,
    digest, and whether a model made from this split may ever be promoted.

    Raises
    ------
    InputError
        when a class that has lesions can not reach all three splits.
    """
    opened = Dataset.open(dataset)
    neighbours = pd.read_parquet(dataset / "neighbours.parquet")
    table = assign(opened.columns("image_id", "lesion_id", "label"), neighbours, params)
    _refuse_missing_class(table)
    info = _describe(table, neighbours, params, opened)
    with new_artifact(target, SPLITS) as folder:
        table.to_parquet(folder / "splits.parquet", index=False)
        write_json(folder / "splits.json", info)
    return info


def assign(manifest: pd.DataFrame, neighbours: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Assign every image of a manifest to a split.

    Within each class, groups are taken from large to small, in the order of a hash of (seed, group), and each goes to
    the split that is furthest below its share so far; so every class and every group size is spread alike.

    Returns
    -------
    DataFrame image_id, lesion_id, group_id, label, split; ordered by image_id.
    """
    table = manifest[["image_id", "lesion_id", "label"]].sort_values("image_id", ignore_index=True)
    by_image = params.strategy == "random"
    table["group_id"] = table["image_id"] if by_image else join_groups(table, neighbours)
    shares = np.array([params.train, params.validation, params.test])
    chosen: dict[str, int] = {}
    for _, members in table.groupby(table.groupby("group_id")["label"].transform("first"), sort=True):
        chosen |= _assign_class(members.groupby("group_id").size(), shares, params.seed)
    table["split"] = table["group_id"].map(lambda group: SPLIT_NAMES[chosen[group]])
    return table[["image_id", "lesion_id", "group_id", "label", "split"]]


def join_groups(table: pd.DataFrame, neighbours: pd.DataFrame) -> pd.Series[str]:
    """The group of each image: lesions that share a near-duplicate pair are one group, named by its first lesion."""
    parent = {lesion: lesion for lesion in table["lesion_id"].unique()}

    def root(lesion: str) -> str:
        while parent[lesion] != lesion:
            parent[lesion] = parent[parent[lesion]]
            lesion = parent[lesion]
        return lesion

    lesion_of = table.set_index("image_id")["lesion_id"]
    for first, second in zip(neighbours["image_a"], neighbours["image_b"], strict=True):
        one, other = sorted((root(lesion_of[first]), root(lesion_of[second])))
        parent[other] = one
    return table["lesion_id"].map(root)


def leakage(table: pd.DataFrame, neighbours: pd.DataFrame) -> dict[str, dict[str, float | int]]:
    """Share of test images that have a relative in train (an image of the same lesion, or a near duplicate), per class."""
    side = table.set_index("image_id")["split"]
    train_lesions = set(table.loc[table["split"] == "train", "lesion_id"])
    pairs = [(a, b) for a, b in zip(neighbours["image_a"], neighbours["image_b"], strict=True)]
    near_train = {a for a, b in [*pairs, *((b, a) for a, b in pairs)] if side[b] == "train"}
    test = table[table["split"] == "test"]
    leaks = test["lesion_id"].isin(train_lesions) | test["image_id"].isin(near_train)
    audit: dict[str, dict[str, float | int]] = {}
    for name, mask in [
        ("all", pd.Series(data=True, index=test.index)),
        *((n, test["label"] == n) for n in sorted(set(test["label"]))),
    ]:
        audit[str(name)] = {
            "test_images": int(mask.sum()),
            "with_relative_in_train": int((leaks & mask).sum()),
            "share": float((leaks & mask).sum() / max(int(mask.sum()), 1)),
        }
    return audit


def _assign_class(sizes: pd.Series[int], shares: np.ndarray[Any, Any], seed: int) -> dict[str, int]:
    order = sorted(sizes.index, key=lambda group: (-sizes[group], hashlib.sha256(f"{seed}/{group}".encode()).digest()))
    assigned = np.zeros(len(shares))
    chosen: dict[str, int] = {}
    for group in order:
        after = assigned.sum() + sizes[group]
        side = int(np.argmax(shares * after - assigned))
        chosen[group] = side
        assigned[side] += sizes[group]
    for empty in np.flatnonzero(assigned == 0):  # a class of few lesions: each split gets one, from the one that has most
        sides = list(chosen.values())
        fullest = max(range(len(shares)), key=sides.count)
        spare = [group for group in reversed(order) if chosen[group] == fullest]
        if len(spare) > 1:
            chosen[spare[0]] = int(empty)
    return chosen


def _refuse_missing_class(table: pd.DataFrame) -> None:
    counts = table.groupby(["label", "split"]).size().unstack(fill_value=0).reindex(columns=list(SPLIT_NAMES), fill_value=0)
    for label, row in counts.iterrows():
        empty = [name for name in SPLIT_NAMES if row[name] == 0]
        if empty:
            raise InputError(
                f"class {label} has too few lesions to be in train, validation and test (none in {', '.join(empty)}); "
                "add images of this class, or leave the class out of the source"
            )


def _describe(table: pd.DataFrame, neighbours: pd.DataFrame, params: SplitParams, dataset: Dataset) -> dict[str, Any]:
    return {
        "algorithm": ALGORITHM,
        "strategy": params.strategy,
        "seed": params.seed,
        "shares": {name: getattr(params, name) for name in SPLIT_NAMES},
        "promotable": params.strategy == "lesion",
        "mark": None if params.strategy == "lesion" else "random split by image: leaks, not promotable",
        "dataset": dataset.version,
        "digest": json_digest(table[["image_id", "group_id", "split"]].to_numpy().tolist()),
        "counts": {
            name: {
                "images": int((table["split"] == name).sum()),
                "lesions": int(table.loc[table["split"] == name, "lesion_id"].nunique()),
                "images_per_class": _counts(table[table["split"] == name].groupby("label").size(), dataset),
                "lesions_per_class": _counts(table[table["split"] == name].groupby("label")["lesion_id"].nunique(), dataset),
            }
            for name in SPLIT_NAMES
        },
        "leakage": leakage(table, neighbours),
    }


def _counts(counted: pd.Series[int], dataset: Dataset) -> dict[str, int]:
    return {name: int(counted.get(name, 0)) for name in dataset.classes}
