"""Fold: the splits by which the model of one fold is made, so that every other step takes them as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dermaflow import contracts
from dermaflow.artifacts import new_artifact, open_artifact, write_json
from dermaflow.folds import held_out


def hold_out(splits: Path, fold: int, target: Path) -> dict[str, Any]:
    """Write the Splits artifact of a fold: splits.parquet, test_sets.parquet and splits.json.

    Parameters
    ----------
    splits: the Splits artifact that has folds.
    fold: the one that is held out, 0 .. folds - 1.

    Returns
    -------
    The content of splits.json. `held_out` names the fold and the splits that it is of. What is made of these splits can
    never be promoted, and their test images come into no numbered test set.

    Raises
    ------
    InputError
        when there is no such fold, or its model would lack a class in train, validation or test.
    """
    whole, parent = open_artifact(splits, contracts.SPLITS), contracts.read_info(splits, contracts.SPLITS)
    table = held_out(contracts.read_splits(splits), parent, fold)
    classes = tuple(parent["counts"]["train"]["images_per_class"])
    info = {
        **{name: parent[name] for name in ("algorithm", "strategy", "seed", "shares", "folds", "dataset")},
        "held_out": {"fold": fold, "splits": parent["digest"], "artifact": whole.digest},
        "promotable": False,
        "mark": f"fold {fold} of {parent['folds']} held out: for out-of-fold figures alone, not promotable",
        "digest": contracts.splits_digest(table),
        "counts": contracts.side_counts(table, classes),
    }
    with new_artifact(target, contracts.SPLITS) as folder:
        table.to_parquet(folder / "splits.parquet", index=False)
        contracts.read_test_sets(splits).iloc[:0].to_parquet(folder / "test_sets.parquet", index=False)
        write_json(folder / "splits.json", info)
    return info
