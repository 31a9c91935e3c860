"""Numbers on attributions: whether they add up, and whether they lie on the lesion more than a centred map would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Map = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.uint8]

# A logit that differs from the base by less than this share of the logits themselves is lost in float32's rounding
# through a hundred layers: relative to such a difference, every error would look large.
SMALLEST_DIFFERENCE = 1e-3
ADDITIVITY_LIMIT = 0.05  # on the median relative error over the explained images


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


def summarise(table: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    """Medians, means and rates over all images, over correct and wrong ones, and by true class; None for no value.

    Parameters
    ----------
    table: one row an image, the columns of attributions.parquet.
    classes: class names; a class without images is left out.
    """
    correct = table["label"] == table["predicted"]
    return {
        "overall": _summary(table),
        "correct": _summary(table[correct]),
        "wrong": _summary(table[~correct]),
        "by_class": {name: _summary(rows) for name in classes if len(rows := table[table["label"] == name])},
    }


def _summary(rows: pd.DataFrame) -> dict[str, Any]:
    judged = rows.dropna(subset=["concentration"])
    return {
        "images": len(rows),
        "additivity_error": {
            "median": _finite(rows["additivity_error"].median()),
            "max": _finite(rows["additivity_error"].max()),
        },
        "concentration": _centre(rows["concentration"]),
        "baseline_concentration": _centre(rows["baseline_concentration"]),
        "above_baseline": _finite((judged["concentration"] > judged["baseline_concentration"]).mean()),
        "pointing": {
            "hit_rate": _finite(rows["pointing_hit"].mean()),
            "image_centre": _finite(rows["centre_hit"].mean()),
            "chance": _finite(judged["area_share"].mean()),
        },
    }


def _centre(values: pd.Series[Any]) -> dict[str, float | None]:
    return {"median": _finite(values.median()), "mean": _finite(values.mean())}


def _finite(value: Any) -> float | None:
    return float(value) if not pd.isna(value) and math.isfinite(float(value)) else None
