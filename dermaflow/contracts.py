"""The other artifacts that pass between steps: their kinds, file names, columns, and readers.

Source      images/, masks/, HAM10000_metadata.csv, source.json: what ingest reads where a step, not a person, made it
            (dermaflow.sources)
Masks       mask-00000.npy ... (uint8 0/1 [n, size, size], aligned with the Dataset's shards), masks.parquet
            (image_id, area_share, components, border_contact, fallback, dice, jaccard; NaN without truth), masks.json
Splits      splits.parquet (SPLIT_COLUMNS), test_sets.parquet (TEST_SET_COLUMNS), splits.json, leakage.png
Plan        plan.parquet (image_id, lesion_id, label, weight, partner_weight, view, symmetry, zoom, brightness, hue),
            mixes.parquet (MIX_COLUMNS), plan.json: train rows only
Model       model.keras, model.json (input contract, weights' origin, parameters, digest), trained_on.parquet
            (TRAINED_ON_COLUMNS: the images of train and validation; see dermaflow.seen)
History     history.parquet (one row an epoch), validation.parquet (the model's logits of the validation images), history.json
Evaluation  predictions.parquet (image_id, lesion_id, split, label, subgroups, logit_<class> ...; `fold` out of fold),
            metrics.json, plots
Comparison  comparison.json (challenger against champion), champion.parquet (the champion's logits)
Selection   selection.json (candidate, by validation only)
Explanation explanation.json (numbers), attributions.parquet, pictures
Registration registration.json (model, version, run, tags)
Decision    decision.json (outcome and gates)
Notification notification.json (how the run ended)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermaflow.artifacts import json_digest, open_artifact, read_json
from dermaflow.dataset import Dataset

SOURCE = "source"
MASKS = "masks"
SPLITS = "splits"
PLAN = "plan"
MODEL = "model"
HISTORY = "history"
EVALUATION = "evaluation"
SELECTION = "selection"
COMPARISON = "comparison"
EXPLANATION = "explanation"
REGISTRATION = "registration"
DECISION = "decision"
NOTIFICATION = "notification"
VALIDATION_REPORT = "validation"

SPLIT_NAMES = ("train", "validation", "test")
EXCLUDED = "excluded"  # the side of an image that may be on none of them
SPLIT_COLUMNS = (
    *("image_id", "lesion_id", "group_id", "label", "source_digest", "pixel_digest"),
    *("split", "reason", "fold", "test_set"),
)
TEST_SET_COLUMNS = (*("image_id", "lesion_id", "group_id", "label", "source_digest", "pixel_digest", "test_set"), "in_dataset")
DEVELOPED_ON = ("train", "validation")  # whoever was here must not judge the model
MIX_COLUMNS = ("image_a", "symmetry_a", "image_b", "symmetry_b", "weight")  # weight of a; b has the rest
LOGIT_PREFIX = "logit_"
METRICS_FILE = "metrics.json"
TRAINED_ON = "trained_on.parquet"
VALIDATION_FILE = "validation.parquet"
TRAINED_ON_COLUMNS = ("image_id", "lesion_id", "source_digest", "pixel_digest", "lesion_digest", "split")


def read_table(path: Path, kind: str, name: str) -> pd.DataFrame:
    """A Parquet table of a finished artifact; raises InputError when the artifact is missing or of another kind."""
    open_artifact(path, kind)
    return pd.read_parquet(path / name)


def read_info(path: Path, kind: str) -> dict[str, Any]:
    """The JSON description of a finished artifact, `<kind>.json`."""
    open_artifact(path, kind)
    info: dict[str, Any] = read_json(path / f"{kind}.json")
    return info


@dataclass(frozen=True)
class TrainRows:
    """Rows of a splits table that are in train, and nothing else: what may be drawn, changed and mixed."""

    table: pd.DataFrame

    def __post_init__(self) -> None:
        """Refuse any other row."""
        others = self.table[self.table["split"] != "train"]
        if len(others):
            first = others.iloc[0]
            raise ValueError(f"{first['image_id']} is in {first['split']}: only train rows may be drawn")

    @classmethod
    def of(cls, splits: pd.DataFrame) -> TrainRows:
        """The train rows of a splits table."""
        return cls(splits[splits["split"] == "train"])


def read_splits(path: Path) -> pd.DataFrame:
    """SPLIT_COLUMNS: one row an image.

    `split` is train, validation, test or excluded (then with a `reason`); `fold` is -1 where folds were not asked for, and
    outside of train and validation; `test_set` is 0 except in test: the number of the test set that an image came in with.
    """
    return read_table(path, SPLITS, "splits.parquet")


def splits_digest(splits: pd.DataFrame) -> str:
    """Digest of who is on which side: of image, group, split and fold, in the order of SPLIT_COLUMNS' table."""
    return json_digest(splits[["image_id", "group_id", "split", "fold"]].to_numpy().tolist())


def side_counts(splits: pd.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Images and lesions of each side, excluded among them, in all and per class."""

    def of(side: pd.DataFrame) -> dict[str, Any]:
        by_class = side.groupby("label")
        images, lesions = by_class.size(), by_class["lesion_id"].nunique()
        return {
            "images": len(side),
            "lesions": int(side["lesion_id"].nunique()),
            "images_per_class": {name: int(images.get(name, 0)) for name in classes},
            "lesions_per_class": {name: int(lesions.get(name, 0)) for name in classes},
        }

    return {name: of(splits[splits["split"] == name]) for name in (*SPLIT_NAMES, EXCLUDED)}


def read_test_sets(path: Path) -> pd.DataFrame:
    """TEST_SET_COLUMNS: every image that is or ever was in test. Test set n is all rows with `test_set` up to n."""
    return read_table(path, SPLITS, "test_sets.parquet")


def seen_before(images: pd.DataFrame, splits: pd.DataFrame) -> pd.Series[bool]:
    """Which images, by their bytes or their pixels, are in train or validation of a splits table, under whatever name.

    Parameters
    ----------
    images: source_digest and pixel_digest of each.
    """
    developed = splits[splits["split"].isin(DEVELOPED_ON)]
    return images["source_digest"].isin(developed["source_digest"]) | images["pixel_digest"].isin(developed["pixel_digest"])


def trained_on(path: Path) -> pd.DataFrame | None:
    """The images of a Model's train and validation parts, TRAINED_ON_COLUMNS; None of one that was made before it kept them."""
    open_artifact(path, MODEL)
    table = path / TRAINED_ON
    return pd.read_parquet(table) if table.exists() else None


def test_set_digest(tests: pd.DataFrame, version: int) -> str:
    """Digest of a numbered test set, of `read_test_sets`: the ids and source digests of all its members."""
    members = tests[tests["test_set"] <= version].sort_values(["image_id", "source_digest"])
    return json_digest(members[["image_id", "source_digest"]].to_numpy().tolist())


def read_plan(path: Path) -> pd.DataFrame:
    """image_id, lesion_id, label, weight, partner_weight, view, symmetry, zoom, brightness, hue: train rows only."""
    return read_table(path, PLAN, "plan.parquet")


def read_mixes(path: Path) -> pd.DataFrame:
    """MIX_COLUMNS: the fixed mixes of pixels that a frozen backbone sees; train images only."""
    return read_table(path, PLAN, "mixes.parquet")


def read_predictions(path: Path) -> pd.DataFrame:
    """image_id, lesion_id, split, label, logit_<class> ...: one row an image."""
    return read_table(path, EVALUATION, "predictions.parquet")


def read_metrics(path: Path) -> dict[str, Any]:
    """`metrics.json` of a finished Evaluation artifact; raises InputError when there is none."""
    open_artifact(path, EVALUATION)
    metrics: dict[str, Any] = read_json(path / METRICS_FILE)
    return metrics


def logit_columns(classes: Sequence[str]) -> list[str]:
    """Names of the logit columns, in class order."""
    return [LOGIT_PREFIX + name for name in classes]


def read_masks(path: Path) -> pd.DataFrame:
    """What masks.parquet says of each image's mask."""
    return read_table(path, MASKS, "masks.parquet")


def masks_of(masks: Path, dataset: Dataset, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Lesion masks of the given manifest rows of `dataset`, uint8 0/1 [k, size, size]."""
    open_artifact(masks, MASKS)
    out = np.empty((len(rows), dataset.image_size, dataset.image_size), np.uint8)
    for shard, here, at in dataset.by_shard(rows):
        out[here] = np.load(masks / f"mask-{shard:05d}.npy", mmap_mode="r")[at]
    return out
