"""Tables of the suite `masks`: whether each image has a plausible lesion mask beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from components.validate.tables.manifest import Tables
from dermaflow import contracts
from dermaflow.dataset import Dataset

LOOKED_AT = 64  # masks of a shard whose pixels are read, evenly spread: all would cost as much as the rest of the suite
_SAME_AREA = 1e-6  # area shares are means of the same 0/1 values


def masks_tables(masks: Path, dataset: Dataset) -> Tables:
    """The tables of a Masks artifact.

    images: an image each that the masks or the dataset know: in_dataset, area_share (none without a mask), components,
        border_contact, dice, fallback_share (of all masks, beside each that is a fallback), mean_dice (of all, beside
        each that has one), pixels_fit (whether the stored mask is 0/1 and of that area; none where it was not looked at).
    shards: a shard each: images and masks in it, aligned (same length and side).
    """
    table = contracts.read_masks(masks)
    rows = dataset.columns("image_id", "lesion_id", "shard", "row")
    both = table.merge(rows, on="image_id", how="outer", indicator="known")
    fallback = both["fallback"].eq(other=True)
    shards = _shards(masks, dataset)
    images = both.assign(
        in_dataset=both["known"].ne("left_only"),
        fallback_share=np.where(fallback, fallback.sum() / max(len(table), 1), np.nan),
        mean_dice=np.where(both["dice"].notna(), both["dice"].mean(), np.nan),
        pixels_fit=np.array(_pixels_fit(both, masks, shards.loc[shards["aligned"], "shard"].tolist()), dtype=object),
    )
    return {"images": images.drop(columns=["known", "shard", "row"]), "shards": shards}


def _shards(masks: Path, dataset: Dataset) -> pd.DataFrame:
    side = dataset.image_size
    rows = []
    for shard in dataset.shards:
        path = masks / f"mask-{shard:05d}.npy"
        shape = np.load(path, mmap_mode="r").shape if path.exists() else (0, side, side)
        length = dataset.shard_length(shard)
        rows.append({"shard": shard, "images": length, "masks": shape[0], "aligned": shape == (length, side, side)})
    return pd.DataFrame(rows, columns=["shard", "images", "masks", "aligned"])


def _pixels_fit(table: pd.DataFrame, masks: Path, shards: list[int]) -> list[bool | None]:
    fits: list[bool | None] = [None] * len(table)
    places, areas = table["row"].to_numpy(), table["area_share"].to_numpy()
    for shard in shards:
        stored = np.load(masks / f"mask-{shard:05d}.npy", mmap_mode="r")
        there = np.flatnonzero(table["shard"].eq(shard) & table["area_share"].notna())
        for row in there[:: max(1, len(there) // LOOKED_AT)]:
            mask = stored[int(places[row])]
            fits[row] = bool(mask.max() <= 1 and abs(float(mask.mean()) - areas[row]) < _SAME_AREA)
    return fits
