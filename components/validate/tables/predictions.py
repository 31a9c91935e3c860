"""Tables of the suite `predictions`: whether every model was asked about the same images, and answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from components.validate.tables.manifest import Tables
from dermaflow import contracts
from dermaflow.contracts import LOGIT_PREFIX
from dermaflow.dataset import Dataset

JUDGED = ("validation", "test")


def predictions_tables(evaluations: Sequence[Path], dataset: Dataset, splits: Path) -> Tables:
    """The tables of Evaluation artifacts, one for each architecture.

    images: an architecture and image each that is predicted or should be: split (of the splits; "none" when they do not
        know it), predicted, split_agrees, label_agrees (with the dataset), finite (all logits).
    models: an architecture each: images, logits (names of the columns, as in the artifact), logits_match (the classes
        of the dataset, in order), classes_predicted.
    """
    side = contracts.read_splits(splits).drop_duplicates("image_id").set_index("image_id")["split"]
    labels = dataset.columns("image_id", "lesion_id", "label").drop_duplicates("image_id").set_index("image_id")
    found = [(contracts.read_metrics(path)["architecture"], contracts.read_predictions(path)) for path in evaluations]
    return {
        "images": pd.concat([_images(name, table, side, labels) for name, table in found], ignore_index=True),
        "models": pd.DataFrame([_model(name, table, dataset) for name, table in found]),
    }


def _images(architecture: str, table: pd.DataFrame, side: pd.Series[str], labels: pd.DataFrame) -> pd.DataFrame:
    wanted = side.index[side.isin(JUDGED)]
    predicted = table["image_id"]
    missing = wanted[~wanted.isin(predicted)]
    ids = pd.concat([predicted, pd.Series(missing, dtype=predicted.dtype)], ignore_index=True)
    asked = len(predicted)
    logits = table[_logit_columns(table)].to_numpy(np.float64)
    told = table[["split", "label"]].reset_index(drop=True).reindex(ids.index)
    split, label = side.reindex(ids).reset_index(drop=True), labels["label"].reindex(ids).reset_index(drop=True)
    is_predicted = np.arange(len(ids)) < asked
    return pd.DataFrame(
        {
            "architecture": architecture,
            "image_id": ids,
            "lesion_id": labels["lesion_id"].reindex(ids).to_numpy(),
            "split": split.fillna("none"),
            "predicted": is_predicted,
            "split_agrees": ~is_predicted | told["split"].eq(split),
            "label_agrees": ~is_predicted | told["label"].eq(label),
            "finite": np.concatenate([np.isfinite(logits).all(axis=1), np.ones(len(missing), bool)]),
        }
    )


def _model(architecture: str, table: pd.DataFrame, dataset: Dataset) -> dict[str, object]:
    columns = _logit_columns(table)
    logits = np.nan_to_num(table[columns].to_numpy(np.float64))
    return {
        "architecture": architecture,
        "images": len(table),
        "logits": ", ".join(columns),
        "logits_match": columns == contracts.logit_columns(dataset.classes),
        "classes_predicted": len(np.unique(logits.argmax(axis=1))) if logits.size else 0,
    }


def _logit_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name.startswith(LOGIT_PREFIX)]
