"""What an earlier assignment said: the side of every image that it knew, and its numbered test sets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dermaflow import contracts
from dermaflow.artifacts import open_artifact
from dermaflow.contracts import TEST_SET_COLUMNS
from dermaflow.errors import InputError

PROTECTION = {"test": 3, "validation": 2, "train": 1, contracts.EXCLUDED: 0}  # which side wins where they meet


@dataclass(frozen=True)
class Memory:
    """An earlier Splits artifact.

    Attributes
    ----------
    path, digest, info: its folder, seal and splits.json.
    sides: its splits.parquet.
    tests: its test_sets.parquet: every image that was ever in test, also those that are gone from the data since.
    """

    path: Path
    digest: str
    info: dict[str, Any]
    sides: pd.DataFrame
    tests: pd.DataFrame

    @classmethod
    def open(cls, path: Path) -> Memory:
        """Read an earlier Splits artifact.

        Raises
        ------
        InputError
            when it is none, was not split by lesion, or a test set is not the one that its number stands for.
        """
        artifact = open_artifact(path, contracts.SPLITS)
        info = contracts.read_info(path, contracts.SPLITS)
        if "held_out" in info:
            raise InputError(
                f"split.previous: {path} are the splits of one fold, whose test images are no test set; name the Splits that "
                "they were made from, or none"
            )
        if info["strategy"] != "lesion":
            raise InputError(
                f"split.previous: {path} was split by strategy {info['strategy']!r}: it tears lesions apart, so that no new "
                "split can keep its sides; name Splits made by split.strategy lesion, or none"
            )
        tests = contracts.read_test_sets(path)
        for said in info["test_sets"]:
            found = contracts.test_set_digest(tests, said["version"])
            if found != said["digest"]:
                raise InputError(
                    f"{path}: test set {said['version']} has digest {found}, but splits.json says {said['digest']}: it was "
                    "changed after it was made; restore it from your backup, DVC or the registry"
                )
        return cls(path=path, digest=artifact.digest, info=info, sides=contracts.read_splits(path), tests=tests)

    @property
    def number(self) -> int:
        """Number of the newest test set."""
        return int(self.info["test_set"]["version"])

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why images were excluded, by their id."""
        excluded = self.sides[self.sides["split"] == contracts.EXCLUDED]
        return dict(zip(excluded["image_id"], excluded["reason"], strict=True))

    def side_by(self, column: str) -> dict[str, str]:
        """The most protected side of the images that share a value of a column (an id, a lesion or a digest).

        Whoever was ever in test is there for good, also after it was gone from the data for a while.
        """
        ever = self.tests[[column]].assign(split="test")
        both = pd.concat([self.sides[[column, "split"]], ever]).dropna()
        ranked = both.assign(rank=both["split"].map(PROTECTION)).sort_values("rank", kind="stable")
        return dict(zip(ranked[column], ranked["split"], strict=True))

    def folds(self, count: int) -> pd.Series[int]:
        """Earlier fold of each image id, where there were as many folds as now."""
        told = self.sides[self.sides["fold"] >= 0] if self.info["folds"] == count else self.sides[:0]
        return told.set_index("image_id")["fold"]


def all_tests(table: pd.DataFrame, memory: Memory | None) -> pd.DataFrame:
    """Every image that is or ever was in test, TEST_SET_COLUMNS, in the order of numbers and ids.

    Parameters
    ----------
    table: the new assignment, SPLIT_COLUMNS.
    """
    now = table.loc[table["split"] == "test", list(TEST_SET_COLUMNS[:-1])].assign(in_dataset=True)
    if memory is not None:
        key = ["image_id", "source_digest"]
        gone = memory.tests.merge(now[key], how="left", indicator="there")
        gone = gone[gone["there"] == "left_only"].assign(in_dataset=False)
        now = pd.concat([now, gone[list(TEST_SET_COLUMNS)]])
    return now.sort_values(["test_set", "image_id", "source_digest"], ignore_index=True)
