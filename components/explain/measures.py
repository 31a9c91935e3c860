"""Numbers on attributions: whether they add up, and whether they lie on the lesion more than a centred map would."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.explain.cells import CELLS, cell_sums
from dermaflow.metrics import mean_over_images

Map = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.uint8]

# A logit that differs from the base by less than this share of the logits themselves is lost in float32's rounding
# through a hundred layers: relative to such a difference, every error would look large.
SMALLEST_DIFFERENCE = 1e-3
ADDITIVITY_LIMIT = 0.05  # on the median relative error over the explained images
ON_LESION_LIMIT = (
    0.3  # below it, what speaks for a class lies elsewhere: phantoms' classes have 0.6 to 0.9, of a planted ruler 0
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


def on_lesion(signed: Map, mask: Mask) -> float:
    """How much of what speaks for the class lies on the lesion or beside its border, above even spread.

    Compared are sums over cells, since single pixels are grainy; beside is within a cell's width, since skin at the border
    tells of it. An artefact that a class was learned by (a ruler, a frame, hair) shows here: its evidence lies elsewhere.

    Returns
    -------
    (share - area) / (1 - area), with the share of the positive cell sums there, and the share of the area: 1 is all of it,
    0 as much as if spread evenly. NaN where the lesion is empty or fills the image, or nothing speaks for the class.
    """
    import cv2

    width = round(len(mask) / CELLS)
    grown = cv2.dilate(
        (mask > 0).astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    )
    area, evidence = area_share(grown), np.maximum(cell_sums(signed), 0)
    if not (0 < area < 1 and evidence.sum() > 0):
        return math.nan
    inside = cell_sums(grown) / cell_sums(np.ones_like(grown))
    return float(((evidence @ inside) / evidence.sum() - area) / (1 - area))


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


def summarise(table: pd.DataFrame, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """Means with their intervals over lesions: of all images, of correct and wrong ones, by true and by predicted class.

    Parameters
    ----------
    table: one row an image, the columns of attributions.parquet.
    classes: class names; a class without images is left out.
    seed: of the resamples.
    """
    correct = table["label"] == table["predicted"]
    return {
        "overall": _summary(table, seed),
        "correct": _summary(table[correct], seed),
        "wrong": _summary(table[~correct], seed),
        **{
            key: {name: _summary(rows, seed) for name in classes if len(rows := table[table[column] == name])}
            for key, column in (("by_class", "label"), ("by_predicted", "predicted"))
        },
    }


def suspected(summary: dict[str, Any]) -> list[str]:
    """Classes that enough lesions are taken for, and whose evidence lies off the lesion: there may be an artefact."""
    told = {name: values["on_lesion"] for name, values in summary["by_predicted"].items()}
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


def _mean(values: pd.Series[Any], lesions: pd.Series[str], seed: int) -> dict[str, Any]:
    """Mean of what is defined, with its interval where there are LEAST_LESIONS, and how many images that are."""
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    known = np.isfinite(numbers)
    found = mean_over_images(numbers[known], lesions[known], bootstrap=BOOTSTRAP, seed=seed)
    few = {"low": None, "high": None} if lesions[known].nunique() < LEAST_LESIONS else {}
    return {"n": int(known.sum()), **found, **few}


def _finite(value: Any) -> float | None:
    return float(value) if not pd.isna(value) and math.isfinite(float(value)) else None
