"""Augment: plan what the trainer may draw. The plan has rows of the train split only, and is small enough to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.augment.preview import draw_preview
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.augmentation import Purpose, allowed_symmetries, image_key, uniform
from dermaflow.contracts import PLAN, read_info, read_splits
from dermaflow.dataset import Dataset
from dermaflow.params import AugmentParams, MixupParams


def augment(dataset: Path, splits: Path, params: AugmentParams, mixup: MixupParams, target: Path) -> dict[str, Any]:
    """Write the Plan artifact: plan.parquet, plan.json and preview.png.

    Returns
    -------
    The content of plan.json: the parameters, the class histogram before and after, digests of what it was made from.

    Raises
    ------
    InputError
        when the asked balance is not available.
    """
    params.require_available()
    opened = Dataset.open(dataset)
    plan = plan_rows(read_splits(splits), params)
    info = _describe(plan, params, mixup, read_info(splits, "splits"))
    with new_artifact(target, PLAN) as folder:
        plan.to_parquet(folder / "plan.parquet", index=False)
        draw_preview(opened, plan, params, mixup, folder / "preview.png")
        write_json(folder / "plan.json", info)
    return info


def plan_rows(splits: pd.DataFrame, params: AugmentParams) -> pd.DataFrame:
    """The plan's table, for the train rows of a splits table.

    Returns
    -------
    DataFrame ordered by image_id and view: image_id, lesion_id, label; weight, how often the image is to be drawn in an
    epoch (they add up to the number of images over the rows of view 0); view, 0 for the image as it is and then the
    fixed views that a frozen backbone sees; symmetry, the view's code 0..7 (see dermaflow.augmentation).
    """
    train = splits[splits["split"] == "train"].sort_values("image_id", ignore_index=True)
    rows = train[["image_id", "lesion_id", "label"]].assign(weight=_weights(train["label"], params.balance))
    symmetries = _view_symmetries(train["image_id"], params)
    views = [rows.assign(view=view, symmetry=symmetries[:, view]) for view in range(symmetries.shape[1])]
    return pd.concat(views).sort_values(["image_id", "view"], ignore_index=True)


def _weights(labels: pd.Series[str], balance: str) -> npt.NDArray[np.float64]:
    if balance == "none":
        return np.ones(len(labels))
    counts = labels.map(labels.value_counts()).to_numpy(dtype=np.float64)
    return np.asarray(len(labels) / (labels.nunique() * counts))


def _view_symmetries(image_ids: pd.Series[str], params: AugmentParams) -> npt.NDArray[np.int32]:
    """Symmetry code of each image's views, int32 [n, views]: the image itself, then different ones in a hashed order."""
    others = np.array([code for code in allowed_symmetries(params) if code], np.int32)
    keys = np.array([image_key(image) for image in image_ids], np.uint64)
    ranks = np.stack([uniform(keys, params.seed, int(code), Purpose.VIEW) for code in others], axis=1) if len(others) else None
    views = min(params.feature_views - 1, len(others))
    chosen = (
        others[np.argsort(ranks, axis=1, kind="stable")[:, :views]] if ranks is not None else np.empty((len(keys), 0), np.int32)
    )
    return np.concatenate([np.zeros((len(keys), 1), np.int32), chosen], axis=1).astype(np.int32)


def _describe(plan: pd.DataFrame, params: AugmentParams, mixup: MixupParams, splits: dict[str, Any]) -> dict[str, Any]:
    images = plan[plan["view"] == 0]
    return {
        "augment": params.model_dump(mode="json"),
        "mixup": mixup.model_dump(mode="json"),
        "splits_digest": splits["digest"],
        "dataset": splits["dataset"],
        "views": int(plan["view"].max()) + 1,
        "histogram": {
            str(label): {"images": len(group), "draws_per_epoch": round(float(group["weight"].sum()), 3)}
            for label, group in images.groupby("label")
        },
    }
