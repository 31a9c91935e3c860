"""One epoch's training images as files, for those who want them: a folder in HAM10000's layout, each with its parent's id."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dermaflow.augmentation import plan_draws
from dermaflow.dataset import Dataset
from dermaflow.description import Description
from dermaflow.params import AugmentParams, MixupParams
from dermaflow.sources import children, of_images, write_source

FOLDER = "materialized"
MARK = "augmented images: not promotable"  # a test image would be one


def write_images(dataset: Dataset, plan: pd.DataFrame, params: AugmentParams, mixup: MixupParams, folder: Path) -> None:
    """Write epoch 0 of a plan, transformed and not mixed (a mix has two parents), into `folder`/materialized.

    It is a source as dermaflow.sources writes them. An image's lesion is its parent's.
    """
    images = plan[plan["view"] == 0].reset_index(drop=True)
    items = of_images(dataset, dataset.rows_of(images["image_id"]))
    table = children(items, plan_draws(images, params, mixup, epoch=0))
    source = dataset.info["source"]
    said = Description(
        name=f"{source['name']}, augmented",
        licence=source["licence"],
        synthetic=source["synthetic"],
        classes=dataset.classes,
        mark=dataset.mark or MARK,
    )
    write_source(dataset, table, folder / FOLDER, said)
