"""Insertion and deletion: whether the answer hangs on the parts that the attribution names first.

Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC 2018; of cells
instead of single pixels, which a network may follow as noise whatever they show (so would random single pixels, against
which an attribution would look bad), and blurred in both games, since edges of filled cells are a picture of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from components.explain.cells import CELLS, cell_sums, cells_of

Floats = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]  # of all cells, the first to be taken first
Predict = Callable[[Floats], npt.NDArray[np.floating[Any]]]  # inputs [k, size, size, channels] -> probabilities [k]

STEPS = 10  # each takes a tenth of the image
BLUR = 0.15  # of the side, a Gaussian's deviation: no structure of a lesion is left, the light and the skin are
RANDOM_ORDERS = 3  # averaged


def perturbed(image: Floats, signed: npt.NDArray[np.floating[Any]], predict: Predict, seed: int) -> dict[str, float]:
    """Play both games in the attribution's order, in random order and from the middle outwards.

    Parameters
    ----------
    image: a model input, float32 [size, size, channels]; a channel after the third (the lesion's mask) stays.
    signed: attributions of the class whose probability `predict` gives, summed over colours, [size, size].
    seed: of the random orders.

    Returns
    -------
    ``insertion``, ``deletion``, and the same with ``_random`` and ``_centre``: area under the probability over the share
    of the image that is inserted or deleted, 0 to 1. High insertion and low deletion speak for the order.
    """
    rng = np.random.default_rng(seed)
    orders = {
        "": [by_attribution(signed)],
        "_random": [rng.permutation(CELLS * CELLS) for _ in range(RANDOM_ORDERS)],
        "_centre": [from_the_middle()],
    }
    smooth = blurred(image)
    told: dict[str, float] = {}
    for name, each in orders.items():
        areas = np.mean([_areas(image, smooth, order, predict) for order in each], axis=0)
        told |= {f"insertion{name}": float(areas[0]), f"deletion{name}": float(areas[1])}
    return told


def by_attribution(signed: npt.NDArray[np.floating[Any]]) -> Order:
    """The cells that speak most for the class first."""
    return np.argsort(-cell_sums(signed), kind="stable")


def from_the_middle() -> Order:
    """The cells nearest to the image's middle first: lesions are photographed there."""
    row, column = np.divmod(np.arange(CELLS * CELLS), CELLS)
    middle = (CELLS - 1) / 2
    return np.argsort((row - middle) ** 2 + (column - middle) ** 2, kind="stable")


def blurred(image: Floats) -> Floats:
    """The input without structure: its colours blurred, other channels as they are."""
    import cv2

    colours = cv2.GaussianBlur(image[..., :3], (0, 0), BLUR * len(image), borderType=cv2.BORDER_REPLICATE)
    return np.concatenate([colours, image[..., 3:]], axis=-1)


def _areas(image: Floats, smooth: Floats, order: Order, predict: Predict) -> tuple[float, float]:
    """Areas under insertion and deletion in one order."""
    step_of = np.empty(CELLS * CELLS, np.int64)
    step_of[order] = np.arange(CELLS * CELLS) * STEPS // (CELLS * CELLS)
    taken = step_of[cells_of(len(image))]  # the step in which each pixel is taken, 0 to STEPS - 1
    masks = taken[None, ..., None] < np.arange(STEPS + 1)[:, None, None, None]
    frames = np.concatenate([np.where(masks, image, smooth), np.where(masks, smooth, image)])
    insertion, deletion = predict(frames.astype(np.float32)).reshape(2, STEPS + 1)
    return float(np.trapezoid(insertion) / STEPS), float(np.trapezoid(deletion) / STEPS)
