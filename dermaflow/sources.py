"""Sources that are made of a Dataset: its images transformed, or parts of them, as files in HAM10000's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermaflow.artifacts import write_json
from dermaflow.augmentation import NUMBERS, UNTOUCHED, Draws, transform
from dermaflow.dataset import CLINICAL_COLUMNS, Dataset, originals
from dermaflow.description import Description
from dermaflow.progress import progress

WINDOW = ("x", "y", "side")
_BATCH = 64  # images in memory at once: 50 MB at 224 pixels in float32


def children(items: pd.DataFrame, draws: Draws) -> pd.DataFrame:
    """What `write_source` takes, for draws of some items of such a table: named after the item and their number.

    Their parent is the photograph that the item itself was made from, or is.
    """
    table = items.iloc[draws.rows].reset_index(drop=True).assign(**{name: getattr(draws, name) for name in NUMBERS})
    number = table.groupby("image_id").cumcount() + 1
    return table.assign(parent_id=originals(table), image_id=table["image_id"] + "_a" + number.astype(str))


def of_images(dataset: Dataset, rows: npt.NDArray[np.int64]) -> pd.DataFrame:
    """What `write_source` takes, for the images of some manifest rows as they are."""
    found = dataset.manifest.iloc[rows].reset_index(drop=True)
    table = pd.DataFrame(
        {
            "lesion_id": found["lesion_id"],
            "image_id": found["image_id"],
            "dx": found["label"],
            **{name: found[name] for name in CLINICAL_COLUMNS},
            "parent_id": found["parent_id"],
        }
    )
    whole = dict(zip(WINDOW, (0, 0, dataset.image_size), strict=True))
    return table.assign(**UNTOUCHED, **whole, row=np.asarray(rows, np.int64))


def write_source(dataset: Dataset, table: pd.DataFrame, folder: Path, said: Description) -> None:
    """Write images of a Dataset, transformed as asked, to a folder that ingest reads.

    `images/` has them as PNG, `masks/` their expert masks, moved alike, where the whole of an image is taken;
    `HAM10000_metadata.csv` has a row each, with the parent and what was done to it; `source.json` what is `said`.

    Parameters
    ----------
    table: a row for each file: HAM10000's columns, parent_id, NUMBERS (see dermaflow.augmentation), x, y and side (pixels, of
        the square that is taken, and enlarged to the image's size), and row (of the manifest).
    """
    import cv2

    (folder / "images").mkdir(parents=True)
    has_truth = dataset.manifest["has_truth"].to_numpy()[table["row"]] & (table["side"] == dataset.image_size).to_numpy()
    if has_truth.any():
        (folder / "masks").mkdir()
    for start in range(0, len(table), _BATCH):
        part = table.iloc[start : start + _BATCH]
        images, masks = _drawn(dataset, part)
        for image_id, image, mask, told in zip(part["image_id"], images, masks, has_truth[start:], strict=False):
            cv2.imwrite(str(folder / "images" / f"{image_id}.png"), image[..., ::-1])
            if told:
                cv2.imwrite(str(folder / "masks" / f"{image_id}_segmentation.png"), mask * 255)
        progress("writing images", start + len(part), len(table))
    table.drop(columns="row").to_csv(folder / "HAM10000_metadata.csv", index=False)
    write_json(folder / "source.json", said.model_dump(mode="json", exclude_none=True))


def _drawn(dataset: Dataset, part: pd.DataFrame) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images uint8 RGB [n, size, size, 3] and their expert masks uint8 0/1 [n, size, size], zero where there is none."""
    import cv2
    import tensorflow as tf

    size, rows = dataset.image_size, part["row"].to_numpy()
    pixels = np.concatenate([dataset.images(rows), dataset.truth(rows)[..., None] * np.uint8(255)], axis=-1)
    for position, (x, y, side) in enumerate(part[list(WINDOW)].itertuples(index=False)):
        if side != size:
            window = pixels[position, y : y + side, x : x + side]
            pixels[position] = cv2.resize(window, (size, size), interpolation=cv2.INTER_CUBIC)
    changed = transform(tf.constant(pixels), *(tf.constant(part[name].to_numpy()) for name in NUMBERS)).numpy().round()
    return changed[..., :3].astype(np.uint8), (changed[..., 3] >= 128).astype(np.uint8)
