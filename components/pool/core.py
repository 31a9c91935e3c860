"""Pool: the predictions of all folds' models on the images that each was held out from, judged together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dermaflow import contracts
from dermaflow.artifacts import open_artifact
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.evaluation import write_evaluation
from dermaflow.folds import FOLD, NOBODY, held_out
from dermaflow.params import EvaluateParams


def pool(dataset: Path, splits: Path, evaluations: Sequence[Path], params: EvaluateParams, target: Path) -> dict[str, Any]:
    """Put the evaluations of one architecture's folds together as one Evaluation artifact, out of fold.

    Parameters
    ----------
    splits: the Splits artifact whose folds were held out.
    evaluations: Evaluation artifacts, one for each fold, in any order. Which fold each is of is read off the images.

    Returns
    -------
    What `metrics.json` says.

    Raises
    ------
    InputError
        when the evaluations are not exactly one of each fold of these splits, or differ in architecture, classes or data.
    """
    images, table = Dataset.open(dataset), contracts.read_splits(splits)
    info = contracts.read_info(splits, contracts.SPLITS)
    parts = [_read(path, table, info) for path in evaluations]
    _refuse_incomplete(parts, info["folds"], splits)
    _refuse_different(parts, images)
    parts.sort(key=lambda part: part.fold)
    common = {
        "architecture": parts[0].metrics["architecture"],
        "model_digest": None,
        "pipeline_check": any(part.metrics["pipeline_check"] for part in parts),
    }
    folds = {
        "folds": info["folds"],
        "seed": info["seed"],
        "splits": info["digest"],
        "models": [part.metrics["model_digest"] for part in parts],
        "evaluations": [open_artifact(part.path, contracts.EVALUATION).digest for part in parts],
    }
    predictions = pd.concat([part.predictions for part in parts], ignore_index=True)
    return write_evaluation(predictions, common, images, params, target, out_of_fold=folds)


@dataclass(frozen=True)
class _Part:
    """The evaluation of one fold's model, its predictions with a column `fold`."""

    path: Path
    fold: int
    metrics: dict[str, Any]
    predictions: pd.DataFrame


def _read(path: Path, splits: pd.DataFrame, info: dict[str, Any]) -> _Part:
    """Read an evaluation that judges exactly the images of one fold, and is validated on exactly those it should be."""
    metrics, predictions = contracts.read_metrics(path), contracts.read_predictions(path)
    judged = predictions.loc[predictions["split"] == "test", "image_id"]
    known = splits.set_index("image_id")[FOLD].reindex(judged).fillna(NOBODY)
    found = sorted(known.astype(int).unique().tolist())
    if len(found) != 1 or found == [NOBODY]:
        raise InputError(
            f"{path} does not judge the images of one fold: its test images are of folds {found}, where {NOBODY} is none; give "
            "the evaluations of the models that a fold was held out from"
        )
    expected = held_out(splits, info, found[0])
    rows, wanted = _named(predictions), _named(expected[expected["split"] != "train"])
    if rows != wanted:
        odd = min(set(rows) ^ set(wanted), default=rows[0])
        raise InputError(
            f"{path} does not judge and validate on the images that fold {found[0]} of these splits asks for, each once (see "
            f"{odd[0]}); evaluate models of these very splits"
        )
    return _Part(path, found[0], metrics, predictions.assign(**{FOLD: found[0]}))


def _named(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    return sorted(table[["image_id", "split", "label"]].itertuples(index=False, name=None))


def _refuse_incomplete(parts: Sequence[_Part], folds: int, splits: Path) -> None:
    found = sorted(part.fold for part in parts)
    if found != list(range(folds)):
        raise InputError(
            f"{splits} has folds 0 to {folds - 1}, but the evaluations are of "
            f"{', '.join(map(str, found)) or 'none'}; give one of each fold: a part of the images is no out-of-fold result"
        )


def _refuse_different(parts: Sequence[_Part], dataset: Dataset) -> None:
    first = parts[0]
    for part in parts:
        if part.metrics["architecture"] != first.metrics["architecture"]:
            raise InputError(f"{part.path} and {first.path} are of different architectures; pool those of one architecture")
        if part.metrics["classes"] != list(dataset.classes) or part.metrics["dataset"] != dataset.version:
            raise InputError(f"{part.path} was evaluated on other data than {dataset.artifact.path}; evaluate on these")
