"""Numbers on attributions: whether they add up, and whether they lie on the lesion more than a centred map would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.explain.cells import CELLS, cell_sums
from dermaflow.metrics import Floats, Weights, intervals, mean_over_images

Map = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.uint8]

# A logit that differs from the base by less than this share of the logits themselves is lost in float32's rounding
# through a hundred layers: relative to such a difference, every error would look large.
SMALLEST_DIFFERENCE = 1e-3
ADDITIVITY_LIMIT = 0.05  # on the median relative error over the explained images
ON_LESION_LIMIT = (
    0.3  # below it, what speaks for a class lies elsewhere: phantoms' classes have 0.4 to 0.97, of a planted ruler -0.1 to 0.2
)


def additivity_error(attribution: Map, logit: float, base: float) -> float:
    """Relative error of the sum of the attributions: |sum + base - logit| / |logit - base|.

    The denominator is at least SMALLEST_DIFFERENCE times the larger of |logit| and |base|.
    """
    difference = max(abs(logit - base), SMALLEST_DIFFERENCE * max(abs(logit), abs(base)))
    error = abs(float(attribution.sum(dtype=np.float64)) + base - logit)
    return error / difference if difference > 0 else error


def concentration(weights: Map, mask: Mask) -> float:
    """How many times more of `weights` lies in the mask than if they were spread evenly.

    Parameters
    ----------
    weights: not negative, [size, size].
    mask: 0/1 [size, size].

    Returns
    -------
    Share of the weights inside the mask divided by the mask's share of the area; 1 is even spread. NaN where the mask
    is empty or full, or all weights are zero.
    """
    area = area_share(mask)
    total = float(weights.sum(dtype=np.float64))
    if not 0 < area < 1 or total == 0:
        return math.nan
    return float(weights[mask > 0].sum(dtype=np.float64)) / total / area


def area_share(mask: Mask) -> float:
    """Return the mask's share of the image, 0 to 1."""
    return float((mask > 0).mean())


def centred_gaussian(mask: Mask) -> Map:
    """Return a map that knows the lesion's size but not its place: a Gaussian in the middle, float64 [size, size].

    It has the spread of an even disc of the mask's area: a disc of radius r has the variance r^2/4 along each axis.
    Lesions are photographed in the middle, so a map must beat this one to say that it has found the lesion.
    """
    height, width = mask.shape
    deviation = max(math.sqrt(area_share(mask) * height * width / math.pi) / 2, 0.5)  # px
    y, x = np.mgrid[:height, :width]
    squares = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2
    return np.asarray(np.exp(-squares / (2 * deviation**2)), np.float64)


def evidence(signed: Map, mask: Mask) -> dict[str, float]:
    """What speaks for a class, and how much of it lies on the lesion or beside its border.

    Compared are sums over cells, since single pixels are grainy; beside is within a cell's width, since skin at the border
    tells of it. An artefact that a class was learned by (a ruler, a frame, hair) shows here: its evidence lies elsewhere.

    Parameters
    ----------
    signed: attributions of the class's logit, [size, size].
    mask: 0/1 [size, size].

    Returns
    -------
    ``evidence``: the sum of the positive cell sums, in units of the logit; ``evidence_there``: of those on the lesion or
    beside it; ``area_there``: the share of the image that this is.
    """
    import cv2

    width = round(len(mask) / CELLS)
    there = cv2.dilate(
        (mask > 0).astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    )
    positive, share = np.maximum(cell_sums(signed), 0), cell_sums(there) / cell_sums(np.ones_like(there))
    return {"evidence": float(positive.sum()), "evidence_there": float(positive @ share), "area_there": area_share(there)}


def on_lesion(rows: pd.DataFrame, weights: Weights | None = None) -> Floats:
    """How much of the evidence of some images together lies on the lesion or beside its border, above even spread.

    Parameters
    ----------
    rows: one row an image, with what `evidence` tells; an image counts by how much speaks for the class in it.
    weights: of the images, [b, n]; None is one of each.

    Returns
    -------
    float64 [b]: (share - area) / (1 - area), with the share of the evidence there and the share of the area: 1 is all of it,
    0 as much as if spread evenly. NaN where lesions are empty or fill the images, or nothing speaks for the class.
    """
    evidence, there, area = (rows[name].to_numpy(np.float64) for name in ("evidence", "evidence_there", "area_there"))
    drawn = np.ones((1, len(rows))) if weights is None else np.asarray(weights, np.float64)
    placed = (area > 0) & (area < 1)
    even = drawn @ np.where(placed, evidence * area, 0)
    most = drawn @ np.where(placed, evidence, 0)
    found = drawn @ np.where(placed, there, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(most - even > 0, (found - even) / (most - even), np.nan)


def pointing_hit(attribution: Map, mask: Mask) -> bool | None:
    """Play the pointing game: whether the pixel that speaks most for the class lies in the mask.

    Zhang, Lin, Brandt, Shen and Sclaroff, Top-Down Neural Attention by Excitation Backprop, ECCV 2016; without their
    tolerance of 15 px, since masks follow the lesion's border. None where the mask is empty or full.
    """
    if not 0 < area_share(mask) < 1:
        return None
    return bool(mask.reshape(-1)[int(attribution.argmax())])


def centre_hit(mask: Mask) -> bool | None:
    """Play it with the middle of the image instead, as a baseline. None where the mask is empty or full."""
    return bool(mask[mask.shape[0] // 2, mask.shape[1] // 2]) if 0 < area_share(mask) < 1 else None


# What is summarised: columns of attributions.parquet, and differences of two of them on the same images.
COLUMNS = (
    "concentration", "baseline_concentration", "on_lesion", "pointing_hit", "centre_hit", "area_share", "insertion",
    "insertion_random", "insertion_centre", "deletion", "deletion_random", "deletion_centre", "stability",
    "stability_unsigned", "agreement",
)  # fmt: skip
DIFFERENCES = {
    "concentration_over_baseline": ("concentration", "baseline_concentration"),
    "pointing_over_centre": ("pointing_hit", "centre_hit"),
    "insertion_over_random": ("insertion", "insertion_random"),
    "insertion_over_centre": ("insertion", "insertion_centre"),
    "deletion_under_random": ("deletion_random", "deletion"),
    "deletion_under_centre": ("deletion_centre", "deletion"),
}
STAGE_COLUMNS = ("similarity", "similarity_unsigned", "concentration")  # of randomisation.parquet
BOOTSTRAP = 2000  # resamples of lesions for each 95 % interval
LEAST_LESIONS = 5  # for an interval: resamples of fewer hardly differ


def summarise(table: pd.DataFrame, spoken: pd.DataFrame, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """Means with their intervals over lesions: of all images, of correct and wrong ones, by true class; and `by_evidence`.

    Parameters
    ----------
    table: one row an image, the columns of attributions.parquet.
    spoken: one row for an image and a class, the columns of evidence.parquet.
    classes: class names; a class without images is left out.
    seed: of the resamples.
    """
    correct = table["label"] == table["predicted"]
    return {
        "overall": _summary(table, seed),
        "correct": _summary(table[correct], seed),
        "wrong": _summary(table[~correct], seed),
        "by_class": {name: _summary(rows, seed) for name in classes if len(rows := table[table["label"] == name])},
        "by_evidence": {
            name: {"images": len(rows), "on_lesion": _on_lesion(rows, seed)}
            for name in classes
            if len(rows := spoken[spoken["class"] == name])
        },
    }


def suspected(summary: dict[str, Any]) -> list[str]:
    """Classes of enough lesions whose evidence lies off the lesion: there may be an artefact."""
    told = {name: values["on_lesion"] for name, values in summary["by_evidence"].items()}
    return [name for name, value in told.items() if value["low"] is not None and value["estimate"] < ON_LESION_LIMIT]


def by_stage(shuffled: pd.DataFrame, table: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """The same of each stage of randomisation, from the first on."""
    rows, told = shuffled.merge(table[["image_id", "lesion_id"]], on="image_id"), []
    for stage in sorted(set(rows["stage"].tolist())):
        of_stage = rows[rows["stage"] == stage]
        told.append({"stage": stage, **{name: _mean(of_stage[name], of_stage["lesion_id"], seed) for name in STAGE_COLUMNS}})
    return told


def _summary(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    values = {name: rows[name].astype("Float64") for name in COLUMNS}
    values |= {name: values[one] - values[other] for name, (one, other) in DIFFERENCES.items()}
    return {
        "images": len(rows),
        "additivity_error": {
            "median": _finite(rows["additivity_error"].median()),
            "max": _finite(rows["additivity_error"].max()),
        },
        **{name: _mean(each, rows["lesion_id"], seed) for name, each in values.items()},
    }


def _on_lesion(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    """`on_lesion` of some images together, with its interval where there are LEAST_LESIONS that it is defined of."""
    known = rows[rows["area_there"].gt(0) & rows["area_there"].lt(1) & rows["evidence"].gt(0)]
    lesions = pd.factorize(known["lesion_id"], sort=True)[0]
    found = intervals(lambda drawn: {"": on_lesion(known, drawn)}, lesions, bootstrap=BOOTSTRAP, seed=seed)[""]
    return _told(known["lesion_id"], dict(found))


def _mean(values: pd.Series[Any], lesions: pd.Series[str], seed: int) -> dict[str, Any]:
    """Mean of what is defined, with its interval where there are LEAST_LESIONS, and how many images that are."""
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    known = np.isfinite(numbers)
    return _told(lesions[known], mean_over_images(numbers[known], lesions[known], bootstrap=BOOTSTRAP, seed=seed))


def _told(lesions: pd.Series[str], found: dict[str, Any]) -> dict[str, Any]:
    few = {"low": None, "high": None} if lesions.nunique() < LEAST_LESIONS else {}
    return {"n": len(lesions), **found, **few}


def _finite(value: Any) -> float | None:
    return float(value) if not pd.isna(value) and math.isfinite(float(value)) else None
