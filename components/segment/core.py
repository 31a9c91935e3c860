"""Segment: a lesion mask for every image of a Dataset, judged against the experts' masks where the source has them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from components.segment.gallery import draw_gallery
from components.segment.kmeans_mask import ALGORITHM, ALGORITHM_VERSION, Image, LesionMask, lesion_mask
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.contracts import MASKS
from dermaflow.dataset import Dataset
from dermaflow.errors import GateError
from dermaflow.metrics import LEVEL, mean_over_images
from dermaflow.params import SegmentParams
from dermaflow.progress import progress

__all__ = ["LesionMask", "lesion_mask", "overlap", "segment"]

_RESAMPLES, _SEED = 1000, 20240101  # of lesions, for the intervals
_BATCH = 128  # images in a process's memory at once: 20 MB at 224 pixels
_WORTH_A_FORK = 512  # images


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
    """Write a mask shard for each image shard; returns masks.parquet, in the order of the manifest.

    Many images are shared out among processes, one a core: the steps on one image are too short for threads, which
    hold the interpreter's lock for most of them. The processes are forked: they read shards and run OpenCV, nothing else.
    """
    side, total = dataset.image_size, len(dataset.manifest)
    has_truth = dataset.manifest["has_truth"].to_numpy()
    portions = []
    for shard in dataset.shards:
        rows = dataset.shard_rows(shard)
        shape = (dataset.shard_length(shard), side, side)  # places without a row keep an empty mask
        np.lib.format.open_memmap(folder / f"mask-{shard:05d}.npy", mode="w+", dtype=np.uint8, shape=shape).flush()
        portions += [_Portion(shard, rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)]
    work = partial(_mask_portion, dataset=dataset, params=params, folder=folder, has_truth=has_truth)
    records: list[dict[str, Any]] = [{}] * total
    done = 0
    with _one_opencv_thread():
        for portion, found in zip(portions, _on_all_cores(work, portions, total), strict=True):
            for row, record in zip(portion.rows, found, strict=True):
                records[row] = record
            done += len(found)
            progress("segmenting", done, total)
    table = pd.DataFrame.from_records(records)
    table.insert(0, "image_id", dataset.manifest["image_id"].to_numpy())
    return table


class _Portion(NamedTuple):
    """Some images of a shard: their manifest rows."""

    shard: int
    rows: npt.NDArray[np.int64]


def _mask_portion(
    portion: _Portion, dataset: Dataset, params: SegmentParams, folder: Path, has_truth: npt.NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Find and write the masks of a portion; returns what masks.parquet says of each."""
    masks = np.load(folder / f"mask-{portion.shard:05d}.npy", mmap_mode="r+")
    found = [lesion_mask(image, params) for image in dataset.images(portion.rows)]
    masks[dataset.manifest["row"].to_numpy()[portion.rows]] = np.stack([lesion.mask for lesion in found])
    masks.flush()
    truths = dataset.truth(portion.rows)
    return [
        _record(lesion, truth if has_truth[row] else None)
        for row, lesion, truth in zip(portion.rows, found, truths, strict=True)
    ]


_work: Callable[[_Portion], list[dict[str, Any]]]  # of a forked process: inherited, since a pipe would copy every shard


def _begin(work: Callable[[_Portion], list[dict[str, Any]]]) -> None:
    global _work  # noqa: PLW0603 - one for each forked process, which has no other work
    _work = work


def _carry_out(portion: _Portion) -> list[dict[str, Any]]:
    return _work(portion)


def _on_all_cores(
    work: Callable[[_Portion], list[dict[str, Any]]], portions: list[_Portion], images: int
) -> Iterator[list[dict[str, Any]]]:
    """`map` over all cores; in this process where there is one core, or too few images to be worth a fork."""
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or images < _WORTH_A_FORK:
        yield from map(work, portions)
        return
    with multiprocessing.get_context("fork").Pool(cores, _begin, (work,)) as pool:
        yield from pool.imap(_carry_out, portions)


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
    labels, lesions = dataset.manifest["label"].to_numpy(), dataset.manifest["lesion_id"]
    per_class = {name: _averages(table[labels == name], lesions) for name in dataset.classes}
    return {
        "algorithm": {"name": ALGORITHM, "version": ALGORITHM_VERSION},
        "params": params.model_dump(mode="json"),
        "dataset": dataset.version,
        "synthetic": dataset.synthetic,
        "interval": {"level": LEVEL, "unit": "lesion", "replicates": _RESAMPLES, "seed": _SEED},
        **_averages(table, lesions),
        "mean_dice_over_classes": _mean([values["mean_dice"] for values in per_class.values()]),
        "mean_jaccard_over_classes": _mean([values["mean_jaccard"] for values in per_class.values()]),
        "classes": per_class,
    }


def _averages(table: pd.DataFrame, lesions: pd.Series[str]) -> dict[str, Any]:
    judged = table[table["dice"].notna()]
    of_judged = lesions[judged.index]
    dice, jaccard = (
        mean_over_images(judged[name].to_numpy(np.float64), of_judged, bootstrap=_RESAMPLES, seed=_SEED)
        for name in ("dice", "jaccard")
    )
    return {
        "n_images": len(table),
        "n_with_truth": len(judged),
        "mean_dice": dice["estimate"],
        "dice_interval": [dice["low"], dice["high"]],
        "mean_jaccard": jaccard["estimate"],
        "jaccard_interval": [jaccard["low"], jaccard["high"]],
        "mean_dice_without_fallback": _mean(judged.loc[~judged["fallback"], "dice"].tolist()),
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
    """Images are worked on in parallel; OpenCV's own threads would only compete with that, and do not outlive a fork."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
