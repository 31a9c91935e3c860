"""Which images a model was made with: by their bytes, by their pixels, and by their lesions.

An image's digests hold under whatever name it comes. A lesion's id does not: two hospitals may both have a lesion 7. What
is known of a lesion decides whether an id names the same one (`seen_by`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermaflow import contracts
from dermaflow.artifacts import json_digest
from dermaflow.dataset import Dataset

_OF_LESION = ("lesion_id", "label", "sex", "age", "localization")


def developed_on(dataset: Dataset, splits: pd.DataFrame) -> pd.DataFrame:
    """contracts.TRAINED_ON_COLUMNS of the train and validation images of a splits table, which a Model keeps."""
    table = splits[splits["split"].isin(contracts.DEVELOPED_ON)].reset_index(drop=True)
    digests = pd.Series(lesion_digests(dataset), index=dataset.manifest["image_id"])
    return table.assign(lesion_digest=digests.reindex(table["image_id"]).to_numpy())[list(contracts.TRAINED_ON_COLUMNS)]


def lesion_digests(dataset: Dataset) -> list[str]:
    """For each manifest row the digest of its lesion's id, class, sex, age and site; "" where nobody told the lesion.

    In class folders each image counts as a lesion of its own, under the name of its file.
    """
    if dataset.info["source"].get("layout") == "class_folders":
        return [""] * len(dataset.manifest)
    told = dataset.manifest[list(_OF_LESION)].astype(object).where(dataset.manifest[list(_OF_LESION)].notna(), None)
    return [json_digest(values) for values in told.to_numpy().tolist()]


def seen_by(developed: pd.DataFrame, dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Which images of a dataset a model was made with, or with others of their lesions; bool [n], as its manifest.

    An image is known by its bytes or its pixels. A lesion is known by any image of it that is; and by its id where most of
    the images whose lesion ids are known agree in class, sex, age and site: then both sides mean the same lesions.

    Parameters
    ----------
    developed: contracts.TRAINED_ON_COLUMNS; without lesion_digest (of splits) ids say nothing.
    """
    images = dataset.manifest
    known = np.asarray(contracts.seen_before(images, developed), np.bool_)
    if "lesion_digest" in developed:
        digests = pd.Series(lesion_digests(dataset))
        same_id = (digests != "") & images["lesion_id"].isin(developed["lesion_id"])
        same_lesion = same_id & digests.isin(developed["lesion_digest"])
        if 2 * same_lesion.sum() > same_id.sum():
            known = known | same_lesion.to_numpy()
    return np.asarray(images["lesion_id"].isin(images.loc[known, "lesion_id"]), np.bool_)
