"""Split: assign lesions, never single images, to train, validation and test; what was once in test stays there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from components.split.assignment import ALGORITHM, MANIFEST_COLUMNS, assign
from components.split.audit import draw_leakage, leakage
from components.split.memory import Memory, all_tests
from dermaflow import contracts
from dermaflow.artifacts import ARTIFACT_FILE, new_artifact, open_artifact, write_json
from dermaflow.contracts import EXCLUDED, SPLIT_NAMES, SPLITS, test_set_digest
from dermaflow.dataset import Dataset, originals
from dermaflow.errors import InputError
from dermaflow.folds import validated_in
from dermaflow.params import SplitParams

__all__ = ["assign", "earlier_at", "leakage", "split"]

RANDOM_MARK = "random split by image: leaks, not promotable"


def split(dataset: Path, params: SplitParams, target: Path, previous: Path | None = None) -> dict[str, Any]:
    """Write the Splits artifact of a Dataset: splits.parquet, test_sets.parquet, splits.json and leakage.png.

    Parameters
    ----------
    previous: an earlier Splits artifact whose sides are kept (see `assignment.assign`); None starts anew. Where nothing has
        changed since, its files are written again as they are.

    Returns
    -------
    The content of splits.json: counts of images and lesions per class and split, the leakage audit, seed, algorithm,
    digests of the assignment and of each numbered test set, and whether a model made from it may ever be promoted.

    Raises
    ------
    InputError
        when a class that has lesions can not reach all three splits, or those of every fold, or `previous` can not be gone on
        from.
    """
    opened = Dataset.open(dataset)
    if previous is not None and params.strategy == "random":
        raise InputError("split.previous: a random split keeps no sides; use split.previous=none, or split.strategy=lesion")
    memory = None if previous is None else Memory.open(previous)
    if memory is not None and _is_same(memory, params, opened):
        with new_artifact(target, SPLITS) as folder:
            for name in open_artifact(memory.path, SPLITS).files:
                shutil.copyfile(memory.path / name, folder / name)
        return memory.info
    neighbours = pd.read_parquet(dataset / "neighbours.parquet")
    table = assign(opened.columns(*MANIFEST_COLUMNS), neighbours, params, memory)
    _refuse_missing_class(table)
    if params.folds:
        validated_in(table, _question(params))  # too few lesions for so many folds are told here, before any model is made
    tests = all_tests(table, memory)
    info = _describe(table, tests, neighbours, params, opened, memory)
    with new_artifact(target, SPLITS) as folder:
        table.to_parquet(folder / "splits.parquet", index=False)
        tests.to_parquet(folder / "test_sets.parquet", index=False)
        draw_leakage(info["leakage"], params.strategy, folder / "leakage.png")
        write_json(folder / "splits.json", info)
    return info


def earlier_at(target: Path, params: SplitParams) -> Path | None:
    """The earlier Splits that a step at a desk goes on from: those that split.previous names, or what lies at `target`."""
    if params.previous == "auto":
        return target if params.strategy == "lesion" and (target / ARTIFACT_FILE).exists() else None
    return None if params.previous == "none" else Path(params.previous)


def _is_same(memory: Memory, params: SplitParams, dataset: Dataset) -> bool:
    """Whether an assignment answers this very question already."""
    asked = {**_question(params), "dataset": dataset.version}
    return all(memory.info[name] == value for name, value in asked.items())


def _question(params: SplitParams) -> dict[str, Any]:
    return {
        "algorithm": ALGORITHM,
        "strategy": params.strategy,
        "seed": params.seed,
        "shares": {name: getattr(params, name) for name in SPLIT_NAMES},
        "folds": params.folds,
    }


def _refuse_missing_class(table: pd.DataFrame) -> None:
    counts = table.groupby(["label", "split"]).size().unstack(fill_value=0).reindex(columns=list(SPLIT_NAMES), fill_value=0)
    for label, row in counts.iterrows():
        empty = [name for name in SPLIT_NAMES if row[name] == 0]
        if empty:
            raise InputError(
                f"class {label} has too few lesions to be in train, validation and test (none in {', '.join(empty)}); "
                "add images of this class, or leave the class out of the source"
            )


def _describe(
    table: pd.DataFrame,
    tests: pd.DataFrame,
    neighbours: pd.DataFrame,
    params: SplitParams,
    dataset: Dataset,
    memory: Memory | None,
) -> dict[str, Any]:
    numbers = range(1, int(tests["test_set"].max()) + 1)
    test_sets = [
        {
            "version": number,
            "digest": test_set_digest(tests, number),
            "images": int((tests["test_set"] <= number).sum()),
            "lesions": int(tests.loc[tests["test_set"] <= number, "lesion_id"].nunique()),
            "withdrawn": int(((tests["test_set"] <= number) & ~tests["in_dataset"]).sum()),
        }
        for number in numbers
    ]
    excluded = table.loc[table["split"] == EXCLUDED, "reason"]
    mark = dataset.mark or (None if params.strategy == "lesion" else RANDOM_MARK)
    return {
        **_question(params),
        "promotable": mark is None,
        "mark": mark,
        "dataset": dataset.version,
        "previous": None if memory is None else {"digest": memory.digest, "test_set": memory.number},
        "digest": contracts.splits_digest(table),
        "test_set": test_sets[-1],
        "test_sets": test_sets,
        "counts": contracts.side_counts(table, dataset.classes),
        "excluded": {str(reason): int(count) for reason, count in excluded.value_counts().sort_index().items()},
        "leakage": leakage(table, neighbours, _parents(table, dataset)),
    }


def _parents(table: pd.DataFrame, dataset: Dataset) -> pd.Series[str]:
    """For each image the photograph that it was made from, or is."""
    rows = dataset.columns("image_id", "parent_id")
    return originals(rows).set_axis(rows["image_id"]).reindex(table["image_id"]).set_axis(table.index)
