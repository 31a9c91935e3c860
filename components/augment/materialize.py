"""One epoch's training images as files, for those who want them: a folder in HAM10000's layout, each with its parent's id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd

from dermaflow.artifacts import write_json
from dermaflow.augmentation import NUMBERS, plan_draws, transform
from dermaflow.dataset import CLINICAL_COLUMNS, Dataset
from dermaflow.params import AugmentParams, MixupParams
from dermaflow.progress import progress

if TYPE_CHECKING:
    import numpy.typing as npt

FOLDER = "materialized"
_BATCH = 64  # images in memory at once: 40 MB at 224 pixels in float32


def write_images(dataset: Dataset, plan: pd.DataFrame, params: AugmentParams, mixup: MixupParams, folder: Path) -> None:
    """Write epoch 0 of a plan, transformed and not mixed (a mix has two parents), as PNG into `folder`/materialized.

    Beside `images/` there are `HAM10000_metadata.csv`, with the parent of each image in parent_id and what was done to it in
    symmetry, zoom, brightness and hue, and `source.json`. An image's lesion is its parent's.
    """
    import tensorflow as tf

    images = plan[plan["view"] == 0].reset_index(drop=True)
    draws = plan_draws(images, params, mixup, epoch=0)
    parents = images["image_id"].iloc[draws.rows].reset_index(drop=True)
    rows = dataset.rows_of(parents)
    table = _metadata(dataset, rows, parents)
    table = table.assign(**{name: getattr(draws, name) for name in NUMBERS})
    target = folder / FOLDER
    (target / "images").mkdir(parents=True)
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        numbers = (tf.constant(table[name].to_numpy()[part]) for name in NUMBERS)
        pixels = transform(tf.constant(dataset.images(rows[part])), *numbers).numpy().round().astype(np.uint8)
        for image_id, image in zip(table["image_id"][part], pixels, strict=True):
            cv2.imwrite(str(target / "images" / f"{image_id}.png"), image[..., ::-1])
        progress("writing images", min(start + _BATCH, len(rows)), len(rows))
    table.to_csv(target / "HAM10000_metadata.csv", index=False)
    source = {name: dataset.info["source"][name] for name in ("licence", "synthetic")}
    write_json(target / "source.json", {"name": f"{dataset.info['source']['name']}, augmented", **source})


def _metadata(dataset: Dataset, rows: npt.NDArray[np.int64], parents: pd.Series[str]) -> pd.DataFrame:
    """HAM10000's columns for the children, named after their parent and the number of its child, and parent_id."""
    of_parent = dataset.manifest.iloc[rows].reset_index(drop=True)
    child = parents.groupby(parents).cumcount() + 1
    return pd.DataFrame(
        {
            "lesion_id": of_parent["lesion_id"],
            "image_id": parents + "_a" + child.astype(str),
            "dx": of_parent["label"],
            **{name: of_parent[name] for name in CLINICAL_COLUMNS},
            "parent_id": parents,
        }
    )
