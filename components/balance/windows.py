"""Skin beside a lesion: the square of an image that lies farthest from its lesion, for the study's class "normal"."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

SIDE_SHARE = 96 / 224  # of the image's side
MARGIN_SHARE = 1 / 40  # of the image's side, kept between the square and the lesion's outline
_DARK = 70  # largest channel of a pixel of the frame, of a thick hair or of ink
_MAX_DARK_SHARE = 0.005

Pixels = npt.NDArray[np.uint8]


def free_window(image: Pixels, lesion: Pixels) -> tuple[int, int, int] | None:
    """The square without lesion whose pixels are farthest from it on average; the topmost, then leftmost of equals.

    Parameters
    ----------
    image: uint8 RGB [size, size, 3].
    lesion: uint8 0/1 [size, size].

    Returns
    -------
    x and y of its corner and its side in pixels; None where no square of SIDE_SHARE keeps MARGIN_SHARE from the lesion
    and is nearly free of dark pixels.
    """
    size = len(lesion)
    side = round(size * SIDE_SHARE)
    distance = cv2.distanceTransform(1 - lesion, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near = distance < size * MARGIN_SHARE
    dark = image.max(axis=-1) < _DARK
    usable = (_sums(near, side) == 0) & (_sums(dark, side) <= _MAX_DARK_SHARE * side**2)
    if not usable.any():
        return None
    y, x = np.unravel_index(np.argmax(np.where(usable, _sums(distance.round(), side), -1)), usable.shape)
    return int(x), int(y), side


def _sums(values: npt.NDArray[np.generic], side: int) -> npt.NDArray[np.float64]:
    """Sum over the square at each corner, by an integral image (Crow 1984); of whole numbers, so that equals are equal."""
    total = cv2.integral(values.astype(np.float64))
    return np.asarray(total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side])
