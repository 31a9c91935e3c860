"""Augment: plan what the trainer may draw. The plan has rows of the train split only, and is small enough to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.augment.materialize import write_images
from components.augment.preview import draw_preview
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.augmentation import fixed_views, image_keys, plan_draws
from dermaflow.contracts import MIX_COLUMNS, PLAN, TrainRows, read_info, read_splits
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.params import AugmentParams, MixupParams


def augment(dataset: Path, splits: Path, params: AugmentParams, mixup: MixupParams, target: Path) -> dict[str, Any]:
    """Write the Plan artifact: plan.parquet, plan.json and preview.png.

    Returns
    -------
    The content of plan.json: the parameters, the class histogram before and after, digests of what it was made from.

    Raises
    ------
    InputError
        when the asked balance does not fit the data.
    """
    mixup.require_balance(params)
    opened = Dataset.open(dataset)
    if params.before_split and opened.mark is None:
        raise InputError(
            f"augment.before_split is true, but {dataset} was not balanced before its split; run or compile the pipeline with "
            "these parameters (dermaflow run --profile paper), so that its graph has the step balance"
        )
    plan = plan_rows(TrainRows.of(read_splits(splits)), params)
    info = _describe(plan, params, mixup, read_info(splits, "splits"))
    with new_artifact(target, PLAN) as folder:
        plan.to_parquet(folder / "plan.parquet", index=False)
        fixed_mixes(plan, params, mixup).to_parquet(folder / "mixes.parquet", index=False)
        if params.materialize:
            write_images(opened, plan, params, mixup, folder)
        draw_preview(opened, plan, params, mixup, folder / "preview.png")
        write_json(folder / "plan.json", info)
    return info


def plan_rows(rows: TrainRows, params: AugmentParams) -> pd.DataFrame:
    """The plan's table. It takes train rows by their type: no other row of a splits table can reach it.

    Returns
    -------
    DataFrame ordered by image_id and view: image_id, lesion_id, label; weight, how often the image is to be drawn in an
    epoch, which has as many draws as they add up to over the rows of view 0; partner_weight, how often it is to be mixed
    into another, 0 unless balance is balanced_mixup; view, 0 for the image as it is and then the fixed views that a frozen
    backbone sees; symmetry, zoom, brightness, hue of the view (see dermaflow.augmentation).
    """
    if not isinstance(rows, TrainRows):
        raise TypeError(f"plan_rows takes TrainRows, not {type(rows).__name__}: nothing else may be drawn")
    train = rows.table.sort_values("image_id", ignore_index=True)
    weight, partner_weight = _weights(train["label"], params)
    drawn = train[["image_id", "lesion_id", "label"]].assign(weight=weight, partner_weight=partner_weight)
    views = [
        drawn.assign(view=view, **numbers) for view, numbers in enumerate(fixed_views(image_keys(train["image_id"]), params))
    ]
    return pd.concat(views).sort_values(["image_id", "view"], ignore_index=True)


def fixed_mixes(plan: pd.DataFrame, params: AugmentParams, mixup: MixupParams) -> pd.DataFrame:
    """So many mixes of two train images as mixup.fixed_mixes asks for, drawn as the trainer draws: MIX_COLUMNS.

    They are the pairs of epochs -1, -2, ..., which no trainer sees, so that more mixes begin with the same.
    """
    images = plan[plan["view"] == 0].reset_index(drop=True)
    ids = images["image_id"].to_numpy(object)
    columns: dict[str, list[Any]] = {name: [] for name in MIX_COLUMNS}
    epoch = -1
    while len(columns["weight"]) < mixup.fixed_mixes:
        own = plan_draws(images, params, mixup, epoch)
        rows, symmetry = (
            (np.roll(own.rows, 1), np.roll(own.symmetry, 1))
            if own.partners is None
            else (own.partners.rows, own.partners.symmetry)
        )
        for column, values in zip(columns.values(), (ids[own.rows], own.symmetry, ids[rows], symmetry, own.mix), strict=True):
            column.extend(values)
        epoch -= 1
    types = (str, np.int32, str, np.int32, np.float32)
    return pd.DataFrame(columns)[: mixup.fixed_mixes].astype(dict(zip(MIX_COLUMNS, types, strict=True)))


def _weights(labels: pd.Series[str], params: AugmentParams) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weight and partner_weight of each image, by the one remedy against imbalance that is asked for."""
    once, never = np.ones(len(labels)), np.zeros(len(labels))
    match "none" if params.before_split else params.balance:
        case "none":
            return once, never
        case "sampler":
            return _equally_often(labels), never
        case "square_root":
            return _by_square_root(labels), never
        case "target_per_class":
            return _as_targeted(labels, params.targets), never
        case "balanced_mixup":
            return once, _equally_often(labels)


def _equally_often(labels: pd.Series[str]) -> npt.NDArray[np.float64]:
    """Weights by which each class is drawn equally often, in as many draws as there are images."""
    return _shared_out(labels, dict.fromkeys(labels.unique(), len(labels) / labels.nunique()))


def _by_square_root(labels: pd.Series[str]) -> npt.NDArray[np.float64]:
    """Weights by which classes are drawn in proportion to the roots of their sizes, in as many draws as there are images."""
    roots = np.sqrt(labels.value_counts())
    return _shared_out(labels, (roots * (len(labels) / roots.sum())).to_dict())


def _as_targeted(labels: pd.Series[str], targets: dict[str, int]) -> npt.NDArray[np.float64]:
    """Weights by which each class is drawn as often as its target says."""
    missing = sorted(set(labels) ^ set(targets))
    if missing:
        why = "not named" if missing[0] in set(labels) else "not a class of the train part"
        raise InputError(f"augment.targets: {missing[0]} is {why}; name each of {', '.join(sorted(set(labels)))} and no other")
    return _shared_out(labels, targets)


def _shared_out(labels: pd.Series[str], draws: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Each class's draws, in equal parts for its images."""
    counts = labels.map(labels.value_counts()).to_numpy(dtype=np.float64)
    return labels.map(draws).to_numpy(dtype=np.float64) / counts


def _describe(plan: pd.DataFrame, params: AugmentParams, mixup: MixupParams, splits: dict[str, Any]) -> dict[str, Any]:
    images = plan[plan["view"] == 0]
    return {
        "augment": params.model_dump(mode="json"),
        "mixup": mixup.model_dump(mode="json"),
        "splits_digest": splits["digest"],
        "dataset": splits["dataset"],
        "views": int(plan["view"].max()) + 1,
        "fixed_mixes": mixup.fixed_mixes,
        "histogram": {
            str(label): {
                "images": len(group),
                "draws_per_epoch": round(float(group["weight"].sum()), 3),
                "partners_per_epoch": round(float(group["partner_weight"].sum()), 3),
            }
            for label, group in images.groupby("label")
        },
    }
