"""Who goes where: groups of lesions to train, validation, test or, where sides have grown together, to none.

A group is all lesions that near duplicates join. What an earlier assignment said is kept: see `assign`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.split.memory import PROTECTION, Memory
from dermaflow.contracts import EXCLUDED, SPLIT_COLUMNS, SPLIT_NAMES
from dermaflow.params import SplitParams
from dermaflow.spreading import hashed, spread

ALGORITHM = "proportional-by-class-and-size-2"  # raise the number when the assignment changes
DIGESTS = ("source_digest", "pixel_digest")
MANIFEST_COLUMNS = ("image_id", "lesion_id", "label", *DIGESTS)
_BY_RANK = {rank: name for name, rank in PROTECTION.items()}


def assign(manifest: pd.DataFrame, neighbours: pd.DataFrame, params: SplitParams, memory: Memory | None = None) -> pd.DataFrame:
    """Assign every image of a manifest to a side.

    Within each class, groups are taken from large to small, in the order of a hash of (seed, group), and each goes to
    the side that is furthest below its share so far; so every class and every group size is spread alike. With
    strategy random an image is a group of its own, and each class gets exactly its rounded shares.

    With an earlier assignment, an image that it knew (by its bytes, its pixels or its id) keeps its side, and a new
    image joins the side of its group. Two cases have no side and become `excluded`, with the reason: a new image of a
    group in test, because a numbered test set gains whole new groups only; and images of train (or validation) whose
    group has come to hold images of test (or validation), by a new image or a corrected lesion. Groups that are new as a
    whole are spread as above, beginning from what the known ones fill.

    Parameters
    ----------
    manifest: MANIFEST_COLUMNS, one row an image.
    neighbours: image_a, image_b: near duplicates.
    memory: the earlier assignment; None starts anew.

    Returns
    -------
    DataFrame with SPLIT_COLUMNS, ordered by image_id. `reason` is empty except where excluded; `fold` is -1 except in train
    and validation when folds are asked for; `test_set` is 0 except in test: the number with which the image came in.
    """
    table = manifest[list(MANIFEST_COLUMNS)].sort_values("image_id", ignore_index=True)
    by_image = params.strategy == "random"
    table["group_id"] = table["image_id"] if by_image else join_groups(table, neighbours)
    known = pd.Series(None, index=table.index, dtype=object)
    table["split"], table["reason"] = known, ""
    if memory is not None:
        _recall(table, memory)
    fresh = table["split"].isna()
    shares = [getattr(params, name) for name in SPLIT_NAMES]
    class_of = table.groupby("group_id")["label"].transform("first")
    for _, members in table.groupby(class_of, sort=True):
        newcomers = members[fresh[members.index]]
        sizes = newcomers.groupby("group_id").size()
        filled = np.array([(members["split"] == name).sum() for name in SPLIT_NAMES], np.float64)
        chosen = _rounded(sizes, shares, params.seed) if by_image else spread(sizes, shares, str(params.seed), filled)
        table.loc[newcomers.index, "split"] = [SPLIT_NAMES[chosen[group]] for group in newcomers["group_id"]]
    table["fold"] = _folds(table, class_of, params, memory)
    table["test_set"] = _test_sets(table, memory)
    return table[list(SPLIT_COLUMNS)]


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


def _rounded(sizes: pd.Series[int], shares: Sequence[float], seed: int) -> dict[str, int]:
    """Images in a hashed order: validation and test get their share, rounded, and train the rest; of three, each gets one."""
    order = sorted(sizes.index, key=lambda image: hashed(f"{seed}/{image}"))
    counts = [0, *(round(len(order) * share) for share in shares[1:])]
    counts[0] = len(order) - sum(counts)
    for side in range(min(len(counts), len(order))):
        if counts[side] < 1:
            counts[int(np.argmax(counts))] -= 1 - counts[side]
            counts[side] = 1
    sides = [side for side, count in enumerate(counts) for _ in range(count)]
    return dict(zip(order, sides, strict=True))


def _recall(table: pd.DataFrame, memory: Memory) -> None:
    """Fill in `split` and `reason` of every image of a group that the earlier assignment knew."""
    own = _most_protected(*(table[name].map(memory.side_by(name)) for name in ("image_id", *DIGESTS)))
    told = _most_protected(own, table["lesion_id"].map(memory.side_by("lesion_id")))
    rank_of_group = told.map(PROTECTION).groupby(table["group_id"]).transform("max")  # NaN where a group is new
    side = rank_of_group.map(_BY_RANK)
    known = side.notna()
    newcomer = known & own.isna()
    table.loc[known, "split"] = side[known]

    joined = known & own.isin(SPLIT_NAMES) & (own != side)
    bridge = table["image_id"].where(newcomer).groupby(table["group_id"]).transform("first")
    by = bridge.map(lambda image: f"new image {image}", na_action="ignore").fillna("corrected metadata")
    _exclude(table, joined, "was in " + own + ", and its group was joined to one in " + side + " by " + by)
    _exclude(table, newcomer & (side == "test"), "new image of a group in test, whose images are fixed")
    before = table["image_id"].map(memory.reasons)
    _exclude(table, known & (own == EXCLUDED), before.fillna("excluded before"))
    _exclude(table, newcomer & (side == EXCLUDED), "new image of a group that was excluded before")


def _exclude(table: pd.DataFrame, rows: pd.Series[bool], reason: pd.Series[str] | str) -> None:
    table.loc[rows, "split"] = EXCLUDED
    table.loc[rows, "reason"] = reason if isinstance(reason, str) else reason[rows]


def _most_protected(*sides: pd.Series[str]) -> pd.Series[str]:
    """For each image the side of the highest rank that is told of it; missing where none is."""
    ranks = pd.concat([side.map(PROTECTION) for side in sides], axis=1).max(axis=1)
    return ranks.map(_BY_RANK)


def _folds(table: pd.DataFrame, class_of: pd.Series[str], params: SplitParams, memory: Memory | None) -> npt.NDArray[np.int64]:
    """Fold of each image of train and validation, 0..folds-1; -1 elsewhere. Groups stay whole, and keep an earlier fold."""
    folds = np.full(len(table), -1, np.int64)
    if not params.folds:
        return folds
    before = pd.Series(dtype=np.int64) if memory is None else memory.folds(params.folds)
    parted = table[table["split"].isin(("train", "validation"))]
    for _, members in parted.groupby(class_of[parted.index], sort=True):
        kept = members["image_id"].map(before).groupby(members["group_id"]).transform("first")
        filled = np.bincount(kept.dropna().astype(np.int64), minlength=params.folds).astype(np.float64)
        sizes = members[kept.isna()].groupby("group_id").size()
        chosen = spread(sizes, [1 / params.folds] * params.folds, f"{params.seed}/fold", filled)
        folds[members.index] = kept.fillna(members["group_id"].map(chosen)).astype(np.int64)
    return folds


def _test_sets(table: pd.DataFrame, memory: Memory | None) -> npt.NDArray[np.int64]:
    """Number of the test set with which each test image came in; 0 elsewhere. Images that came in now share one number."""
    in_test = (table["split"] == "test").to_numpy()
    numbers = in_test.astype(np.int64)
    if memory is not None:
        members = table.loc[in_test, ["image_id", "source_digest"]]
        came = members.merge(memory.tests[["image_id", "source_digest", "test_set"]], how="left")["test_set"]
        numbers[in_test] = came.fillna(memory.number + 1)
    return numbers
