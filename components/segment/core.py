"""Segment: a lesion mask for every image of a Dataset, judged against the experts' masks where the source has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from components.segment.gallery import draw_gallery
from components.segment.kmeans_mask import ALGORITHM, ALGORITHM_VERSION, Image, LesionMask, lesion_mask
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.contracts import MASKS
from dermaflow.dataset import Dataset
from dermaflow.errors import GateError
from dermaflow.params import SegmentParams
from dermaflow.progress import progress

__all__ = ["LesionMask", "lesion_mask", "overlap", "segment"]

_BATCH = 128  # images in memory at once: 20 MB at 224 pixels


def segment(dataset_path: Path, params: SegmentParams, target: Path) -> dict[str, Any]:
    """Write the Masks artifact of a Dataset: mask shards, masks.parquet, masks.json and gallery.png.

    Parameters
    ----------
    dataset_path: a finished Dataset artifact.
    params: working size, plausible areas, and the mean Dice below which the run stops.
    target: folder of the new artifact; an older one is replaced only when this one is complete.

    Returns
    -------
    dict
        what masks.json says: shares and means over all images, and the same for each class. A mean is None where there
        is no expert mask to compare with.

    Raises
    ------
    InputError
        `dataset_path` is not a finished Dataset, or `target` can not be written.
    GateError
        the mean Dice is below `params.min_dice`; nothing is written.
    """
    dataset = Dataset.open(dataset_path)
    with new_artifact(target, MASKS) as folder:
        table = _write_masks(dataset, params, folder)
        info = _summary(dataset, table, params)
        _refuse_poor_masks(info, table, params, dataset_path)
        table.to_parquet(folder / "masks.parquet", index=False)
        write_json(folder / "masks.json", info)
        draw_gallery(dataset, table, folder)
    return info


def overlap(mask: Image, truth: Image) -> tuple[float, float]:
    """Dice 2 |A and B| / (|A| + |B|) and Jaccard |A and B| / |A or B| of two 0/1 masks; 1 when both are empty."""
    both, total = int(np.count_nonzero(mask & truth)), int(np.count_nonzero(mask) + np.count_nonzero(truth))
    return (2 * both / total, both / (total - both)) if total else (1.0, 1.0)


def _write_masks(dataset: Dataset, params: SegmentParams, folder: Path) -> pd.DataFrame:
    """Write a mask shard for each image shard; returns masks.parquet, in the order of the manifest."""
    side, total = dataset.image_size, len(dataset.manifest)
    places, has_truth = dataset.manifest["row"].to_numpy(), dataset.manifest["has_truth"].to_numpy()
    records: list[dict[str, Any]] = [{}] * total
    done = 0
    with _one_opencv_thread(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for shard in dataset.shards:
            rows = dataset.shard_rows(shard)
            path = folder / f"mask-{shard:05d}.npy"
            shape = (dataset.shard_length(shard), side, side)  # places without a row keep an empty mask
            masks = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                found = list(pool.map(partial(lesion_mask, params=params), dataset.images(batch)))
                masks[places[batch]] = np.stack([lesion.mask for lesion in found])
                for row, lesion, truth in zip(batch, found, dataset.truth(batch), strict=True):
                    records[row] = _record(lesion, truth if has_truth[row] else None)
                done += len(batch)
                progress("segmenting", done, total)
            masks.flush()
    table = pd.DataFrame.from_records(records)
    table.insert(0, "image_id", dataset.manifest["image_id"].to_numpy())
    return table


def _record(lesion: LesionMask, truth: Image | None) -> dict[str, Any]:
    dice, jaccard = (np.nan, np.nan) if truth is None else overlap(lesion.mask, truth)
    return {
        "area_share": float(lesion.mask.mean()),
        "components": lesion.components,
        "border_contact": lesion.border_contact,
        "fallback": lesion.fallback,
        "dice": dice,
        "jaccard": jaccard,
    }


def _summary(dataset: Dataset, table: pd.DataFrame, params: SegmentParams) -> dict[str, Any]:
    """What masks.json says; None, not NaN, where there is nothing to average."""
    labels = dataset.manifest["label"].to_numpy()
    per_class = {name: _averages(table[labels == name]) for name in dataset.classes}
    return {
        "algorithm": {"name": ALGORITHM, "version": ALGORITHM_VERSION},
        "params": params.model_dump(mode="json"),
        "dataset": dataset.version,
        "synthetic": dataset.synthetic,
        **_averages(table),
        "mean_dice_over_classes": _mean([values["mean_dice"] for values in per_class.values()]),
        "mean_jaccard_over_classes": _mean([values["mean_jaccard"] for values in per_class.values()]),
        "classes": per_class,
    }


def _averages(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "n_images": len(table),
        "n_with_truth": int(table["dice"].notna().sum()),
        "mean_dice": _mean(table["dice"].dropna().tolist()),
        "mean_jaccard": _mean(table["jaccard"].dropna().tolist()),
        "fallback_share": _mean(table["fallback"].tolist()),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _refuse_poor_masks(info: dict[str, Any], table: pd.DataFrame, params: SegmentParams, dataset_path: Path) -> None:
    if info["mean_dice"] is None or info["mean_dice"] >= params.min_dice:
        return
    worst = table.nsmallest(3, "dice")["image_id"]
    raise GateError(
        f"the mean Dice of the lesion masks against the {info['n_with_truth']} expert masks of {dataset_path} is "
        f"{info['mean_dice']:.3f}; segment.min_dice asks for at least {params.min_dice:g}. "
        f"Look first at {', '.join(worst)}: do the expert masks belong to the images? "
        "If they do and such masks are good enough for you, lower segment.min_dice."
    )


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Images are worked on in parallel; OpenCV's own threads would only compete with that."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
