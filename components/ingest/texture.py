"""Texture: an image's marks, freed of light, skin tone and outline; and how two images' textures are laid upon each other."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from components.ingest.thumbnail import BLACK, LOG, LOG_STEP, RIM, Bytes, Floats, brightest, radius

FINE = 64  # px: the side of the last look
LEAST_OVERLAP = 0.15  # of the image's area
_TEXTURE_SCALE = 1.5  # px: deviation of the Gaussian that parts a mark from its surroundings
_FLAT = 0.4  # brightness codes: below this deviation there is only noise
_TEXTURE_CODE = 32  # codes per local deviation; int8 then holds 4 of them
_EDGE = 11  # px at 64 x 64, across: how far the surround's soft edge reaches, both ways
_FINE_RADIUS = radius(FINE)

Texture = npt.NDArray[np.int8]


def texture_of(brightness: Floats) -> Texture:
    """Brightness less its surroundings, over its local deviation, in codes."""
    surroundings = cv2.GaussianBlur(brightness, (0, 0), _TEXTURE_SCALE)
    marks = brightness - surroundings
    deviation = np.sqrt(cv2.GaussianBlur(marks * marks, (0, 0), _TEXTURE_SCALE)) + _FLAT
    return np.asarray(np.clip(np.rint(marks / deviation * _TEXTURE_CODE), -127, 127), np.int8)


def fine_texture(pixels: Bytes) -> Texture:
    """Texture at 64 x 64; none at the instrument's surround, whose round edge would make strangers alike."""
    small = cv2.resize(pixels, (FINE, FINE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    texture = texture_of((LOG[grey] - LOG[0]) / np.float32(LOG_STEP))
    surround = (brightest(small) < BLACK) & (_FINE_RADIUS > RIM)
    if surround.any():
        texture[cv2.dilate(surround.astype(np.uint8), np.ones((_EDGE, _EDGE), np.uint8)) > 0] = 0
    return texture


def enlarged(matrix: Floats, times: int) -> Floats:
    """The same matrix for pixels that are `times` smaller; coordinates are those of pixel centres."""
    offset = matrix[:, 2] * times + (times - 1) / 2 * (1 - matrix[:, 0] - matrix[:, 1])
    return np.column_stack([matrix[:, :2], offset]).astype(np.float32)


def warp(plane: Floats, matrix: Floats, border: float) -> Floats:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(plane, matrix, plane.shape, flags=flags, borderValue=border))


def align(first: Floats, second: Floats, matrix: Floats, iterations: int) -> Floats | None:
    """The affine matrix that maximises the correlation (ECC), from a start; None where it leaves the image."""
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, iterations, 1e-4)
    try:
        _, found = cv2.findTransformECC(second, first, matrix.copy(), cv2.MOTION_AFFINE, criteria, None, 1)
    except cv2.error:  # how OpenCV says that it does not converge
        return None
    return np.asarray(found, np.float32)


def correlation(first: Floats, second: Floats, matrix: Floats) -> float:
    """Correlation of two textures where the first, warped, covers the second; 0 where that is too little."""
    outside = 1e6
    moved = warp(first, matrix, border=outside)
    inside = abs(moved) <= 128  # codes
    if inside.mean() < LEAST_OVERLAP:
        return 0.0
    moved, second = moved[inside], second[inside]
    return float(moved @ second / np.sqrt((moved @ moved) * (second @ second) + 1e-6))
