"""Measure an image: brightness, contrast, sharpness, entropy, and how much hair, dark frame and marker ink it shows.

All measures come from thumbnails, so that they cost a fraction of decoding and do not follow `data.image_size`. The
thresholds were set by eye on contact sheets of HAM10000's 10,015 images. Of the 72 images with the highest value, all but
two show hair (hair_share), and all show a dark frame or a shadow at the rim (vignette_share). Of the 24 with most ink, 13
show a marker or a blue scale; the others are blue lesions that reach the rim, or skin of a violet tint. Scale marks have
no detector: ticks of a few pixels could not be told from short hairs.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Measures = npt.NDArray[np.float64]
PROPERTIES = ("brightness", "contrast", "sharpness", "entropy", "hair_share", "vignette_share", "ink_share")

ALGORITHM = "thumbnail-2"  # raise the number when a measure changes
SIDE = 112  # px of the grey thumbnail: hairs of HAM10000 are still 1 to 3 px wide
INK_SIDE = 56  # px of the coloured thumbnail: strokes of a skin marker are broader than hairs
HAIR_REACH = 3  # px from the axis of a hair to the skin beside it
HAIR_HALF_LENGTH = 4  # px along the hair that must be dark on both sides of a point
HAIR_DEPTH = 16  # grey levels by which a hair is darker than the skin on both sides
DARK = 40  # grey level below which there is no lit skin: the mask of the lens, or shadow
INK_OVER_RED, INK_OVER_GREEN, INK_PURITY = 20, 15, 60  # levels by which blue exceeds red, green, and the lower of the two
INK_FROM_CENTRE = 0.65  # of the half side: nearer to the centre, blue is the lesion's own


def _from_centre(side: int) -> npt.NDArray[np.float64]:
    """Distance of each pixel from the centre, in half sides; float [side, side]."""
    across = np.linspace(-1, 1, side)
    return np.hypot(across[:, None], across[None, :])


_SIDES_MARGIN, _ENDS_MARGIN = SIDE * HAIR_REACH, SIDE * HAIR_HALF_LENGTH  # whole rows left out above and below
_CORNERS = _from_centre(SIDE) > 1  # outside the ellipse that touches the sides
_CORNER_PIXELS = int(np.count_nonzero(_CORNERS))
_LEVELS = np.arange(256.0)
_RIM = _from_centre(INK_SIDE) > INK_FROM_CENTRE


def properties(pixels: Pixels) -> dict[str, float]:
    """Measure one image, uint8 RGB [size, size, 3]; see `properties_of`."""
    grey, coloured = reduced(pixels)
    return {name: float(values[0]) for name, values in properties_of(grey[None], coloured[None]).items()}


def reduced(pixels: Pixels) -> tuple[Pixels, Pixels]:
    """What an image, uint8 RGB [size, size, 3], is measured on: grey [SIDE, SIDE] and coloured [INK_SIDE, INK_SIDE, 3]."""
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    coloured = cv2.resize(pixels, (INK_SIDE, INK_SIDE), interpolation=cv2.INTER_NEAREST)
    return np.asarray(grey, np.uint8), np.asarray(coloured, np.uint8)


def properties_of(grey: Pixels, coloured: Pixels) -> dict[str, Measures]:
    """Measure n images, a few at a time: 8 together cost two thirds of 8 alone.

    Parameters
    ----------
    grey, coloured: what `reduced` makes of each, uint8 [n, SIDE, SIDE] and [n, INK_SIDE, INK_SIDE, 3].

    Returns
    -------
    float64 [n] for each name in PROPERTIES; a value follows from its image alone.
        brightness: mean grey level, 0 to 255.
        contrast: standard deviation of the grey levels.
        sharpness: variance of the Laplacian (Pech-Pacheco et al. 2000); low when out of focus.
        entropy: of the histogram of grey levels, 0 to 8 bits.
        hair_share: share of pixels on the axis of a dark line, as in DullRazor's closing along lines (Lee et al. 1997).
        vignette_share: share of the corners, outside the ellipse that touches the sides, that is dark.
        ink_share: share of pixels in the outer part that are pure blue or violet.
    """
    counts = np.array([np.ravel(cv2.calcHist([image], [0], None, [256], [0, 256])) for image in grey], np.float64)
    total, squares = counts @ _LEVELS, counts @ _LEVELS**2  # whole numbers below 2^53: exact
    values = (
        total / SIDE**2,
        np.sqrt(SIDE**2 * squares - total**2) / SIDE**2,
        _sharpness(grey),
        _entropy(counts),
        _true(hair_axes(grey)) / SIDE**2,
        _true((grey < DARK) & _CORNERS) / _CORNER_PIXELS,
        _true(_ink(coloured)) / INK_SIDE**2,
    )
    return dict(zip(PROPERTIES, values, strict=True))


def hair_axes(grey: Pixels) -> npt.NDArray[np.bool_]:
    """Where grey images [..., SIDE, SIDE] have the axis of a dark line: bool, without the margin that a line's ends need.

    A point counts when, in one of four directions, it and the points HAIR_HALF_LENGTH before and after it are darker by
    HAIR_DEPTH than the points HAIR_REACH to both sides. Dots, and the rim of a lesion, fail that.
    """
    across, along = HAIR_REACH, HAIR_HALF_LENGTH
    levels = grey.reshape(-1, SIDE**2)
    depths = [
        _depth(levels, across, SIDE * along),
        _depth(levels, SIDE * across, along),
        _depth(levels, (SIDE + 1) * (across - 1), (SIDE - 1) * (along - 1)),  # a diagonal step is longer
        _depth(levels, (SIDE - 1) * (across - 1), (SIDE + 1) * (along - 1)),
    ]
    deepest = np.maximum(np.maximum(depths[0], depths[1]), np.maximum(depths[2], depths[3]))
    margin = across + along  # nearer to the side, a step would end in the next row
    return np.asarray(deepest.reshape(*grey.shape[:-2], -1, SIDE)[..., margin:-margin] > HAIR_DEPTH)


def _depth(levels: Pixels, across: int, along: int) -> Pixels:
    """By how many levels each point's line is darker than both of its sides, 0 where it is not: uint8, [n, pixels] as given.

    The steps count pixels in reading order, so that a shifted image is a slice of contiguous memory: four times as fast.
    """
    sides = np.minimum(_shifted(levels, _SIDES_MARGIN, across), _shifted(levels, _SIDES_MARGIN, -across))
    valley = np.asarray(cv2.subtract(sides, _shifted(levels, _SIDES_MARGIN, 0)), np.uint8)  # stops at 0
    ends = np.minimum(_shifted(valley, _ENDS_MARGIN, along), _shifted(valley, _ENDS_MARGIN, -along))
    return np.minimum(ends, _shifted(valley, _ENDS_MARGIN, 0))


def _shifted(levels: Pixels, margin: int, step: int) -> Pixels:
    return levels[:, margin + step : levels.shape[1] - margin + step]


def _sharpness(grey: Pixels) -> Measures:
    """The Laplacian's mean is 0 but for the rim, so that its mean square is its variance."""
    return np.array([cv2.norm(cv2.Laplacian(image, cv2.CV_16S), cv2.NORM_L2SQR) for image in grey]) / SIDE**2


def _entropy(counts: Measures) -> Measures:
    """Of histograms [n, 256] of SIDE x SIDE pixels each, in bits."""
    return np.asarray(np.log2(SIDE**2) - (counts * np.log2(np.maximum(counts, 1))).sum(axis=1) / SIDE**2)


def _ink(coloured: Pixels) -> npt.NDArray[np.bool_]:
    """Where thumbnails [n, INK_SIDE, INK_SIDE, 3] show ink."""
    red, green, blue = cv2.split(coloured.reshape(-1, INK_SIDE, 3))
    over_red, over_green = np.asarray(cv2.subtract(blue, red)), np.asarray(cv2.subtract(blue, green))
    pure = np.maximum(over_red, over_green) > INK_PURITY
    ink = pure & (over_red > INK_OVER_RED) & (over_green > INK_OVER_GREEN)
    return np.asarray(ink.reshape(-1, INK_SIDE, INK_SIDE) & _RIM)


def _true(found: npt.NDArray[np.bool_]) -> Measures:
    """How many of each image's points are true: [n, ...] to float64 [n]."""
    return np.array([np.count_nonzero(one) for one in found], np.float64)
