"""An image's thumbnail, as ingest keeps it of every image, and its low frequencies in many views of it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

SIDE, COLOUR_SIDE = 32, 16  # px: brightness and colours
SIGNATURE_LENGTH = SIDE**2 + 2 * COLOUR_SIDE**2  # bytes
_DARK = 8.0  # grey levels added before the logarithm, so that noise in black hair stays small
LOG = np.log(np.arange(256, dtype=np.float32) + _DARK)
LOG_STEP = float(LOG[-1] - LOG[0]) / 255  # of brightness, per code
_COLOUR_STEP = 0.01  # of a colour difference, per code
BLACK, RIM = 45, 0.75  # grey level and radius (in half sides) from which a pixel is the instrument's surround, not skin
_FREQUENCIES = 5  # cosine waves below this radius, in half waves per window
_ZOOMS = (1.0, 1.15, 1.32, 1.52, 1.75, 2.0, 2.3)  # HAM10000's same-lesion pairs: median 1.4, 90 % below 2.3
_SHIFT = 0.07  # of a window's side: what the low frequencies tolerate
_SKIN = (4.97, 0.40, -0.23)  # HAM10000's mean brightness and colours, as logarithms
_SPREAD = (2.04, 1.47, 0.79)  # deviation of the first wave of each; the k-th has k^-0.85 of it

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def thumbnail(pixels: Bytes) -> Bytes:
    """uint8 RGB [size, size, 3] as [SIDE, SIDE, 3]: what signature and hash are made of."""
    return np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def signature(pixels: Bytes) -> Bytes:
    """The signature of one image, uint8 RGB [size, size, 3]: uint8 [SIGNATURE_LENGTH]; see `signatures`."""
    return np.asarray(signatures(thumbnail(pixels)[None])[0])


def signatures(thumbnails: Bytes) -> Bytes:
    """What near duplicates are searched by: logarithms of brightness and of two colour differences.

    Parameters
    ----------
    thumbnails: uint8 RGB [n, SIDE, SIDE, 3].

    Returns
    -------
    uint8 [n, SIGNATURE_LENGTH]: 32 x 32 of brightness, then twice 16 x 16 of colour (red to blue, green to both). A row
    follows from its image alone.
    """
    logs = LOG[thumbnails]
    surround = (brightest(thumbnails.reshape(-1, SIDE, 3)).reshape(-1, SIDE, SIDE) < BLACK) & (_RADIUS > RIM)
    for image in np.flatnonzero(surround.any(axis=(1, 2))):
        skin = (_RADIUS > 0.5) & ~surround[image]  # around the lesion
        values, middle = logs[image, skin], (np.count_nonzero(skin) - np.array([1, 0])) // 2
        logs[image, surround[image]] = np.partition(values, middle, axis=0)[middle].mean(axis=0)  # the median, in half its time
    red, green, blue = cv2.split(logs.reshape(-1, SIDE, 3))  # the images below each other
    brightness = ((red + green + blue) / 3 - LOG[0]) / LOG_STEP
    differences = cv2.merge([red - blue, green - (red + blue) / 2])
    colours = cv2.resize(differences, (COLOUR_SIDE, len(logs) * COLOUR_SIDE), interpolation=cv2.INTER_AREA)
    planes = (128 + colours / _COLOUR_STEP).reshape(-1, COLOUR_SIDE**2, 2).transpose(0, 2, 1)
    codes = np.concatenate([brightness.reshape(-1, SIDE**2), planes.reshape(-1, 2 * COLOUR_SIDE**2)], axis=1)
    return np.asarray(np.clip(np.rint(codes), 0, 255), np.uint8)


def brightest(pixels: Bytes) -> Bytes:
    """The largest channel of each pixel."""
    red, green, blue = cv2.split(pixels)
    return np.asarray(cv2.max(cv2.max(red, green), blue), np.uint8)


def perceptual_hash(pixels: Bytes) -> str:
    """The hash of one image, uint8 RGB [size, size, 3]; see `perceptual_hashes`."""
    return perceptual_hashes(thumbnail(pixels)[None])[0]


def perceptual_hashes(thumbnails: Bytes) -> list[str]:
    """Signs of 64 low cosine waves as 16 hex digits, the same for all flips and right-angle turns of uint8 [n, SIDE, SIDE, 3].

    Each picture is first put upright: brighter to the left and to the top, with the larger slope from left to right.
    """
    grey = np.asarray(cv2.cvtColor(thumbnails.reshape(-1, SIDE, 3), cv2.COLOR_RGB2GRAY)).reshape(-1, SIDE, SIDE)
    waves = _HASH_WAVES @ grey.astype(np.float64) @ _HASH_WAVES.T
    tall = np.abs(waves[:, 1, 0]) > np.abs(waves[:, 0, 1])
    waves[tall] = waves[tall].transpose(0, 2, 1)
    waves[:, 1::2] *= np.where(waves[:, 1, 0] < 0, -1, 1)[:, None, None]
    waves[:, :, 1::2] *= np.where(waves[:, 0, 1] < 0, -1, 1)[:, None, None]
    bits = np.packbits((waves[:, 1:, 1:] > 0.5).reshape(-1, 64), axis=1)  # half a grey level: less is rounding
    return [row.tobytes().hex() for row in bits]


# --- low frequencies ---


def radius(side: int) -> npt.NDArray[np.float64]:
    """Each pixel's distance from the centre, in half sides."""
    return np.asarray(np.hypot(*(np.mgrid[:side, :side] - (side - 1) / 2)) / (side / 2))


_RADIUS = radius(SIDE)
_HASH_WAVES = np.cos(np.pi / SIDE * np.arange(9)[:, None] * (np.arange(SIDE) + 0.5)) * np.sqrt(2 / SIDE)
_HASH_WAVES[0] /= np.sqrt(2)
_SHIFTS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
VIEWS = (  # orientation, zoom and shift of each look at an image
    [(0, _ZOOMS[0], shift) for shift in _SHIFTS]
    + [(orientation, _ZOOMS[0], (0, 0)) for orientation in range(1, 8)]
    + [(0, zoom, shift) for zoom in _ZOOMS[1:] for shift in _SHIFTS]
)
UNZOOMED, ZOOMED = slice(0, 16), slice(16, len(VIEWS))
_WAVE = np.hypot(*np.mgrid[:_FREQUENCIES, :_FREQUENCIES])
_LOW = _WAVE < _FREQUENCIES
_SAMPLES = 24  # per window's side
_CENTRE = np.zeros((3, _LOW.sum()), np.float32)
_CENTRE[:, 0] = np.multiply(_SKIN, _SAMPLES)
_WEIGHT = (np.maximum(_WAVE[_LOW], 0.75) ** 0.85 / np.array(_SPREAD)[:, None]).astype(np.float32)


def _waves(side: int) -> Floats:
    """Rows that take a plane's axis to the cosine waves of every zoom and shift: [zooms, 3 x waves, side]."""
    at = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    waves = np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * at) * np.sqrt(2 / _SAMPLES)
    waves[0] /= np.sqrt(2)
    out = []
    for zoom in _ZOOMS:
        for shift in (-_SHIFT, 0.0, _SHIFT):
            place = np.clip((side - 1) / 2 + side / zoom * (shift + at - 0.5), 0, side - 1)
            out.append(waves @ np.maximum(0, 1 - abs(place[:, None] - np.arange(side))))  # linear interpolation
    return np.concatenate(out).reshape(len(_ZOOMS), -1, side).astype(np.float32)


WAVES = _WEIGHT.size  # of a view
_TO_WAVES = {side: _waves(side) for side in (SIDE, COLOUR_SIDE)}


def _taken() -> tuple[npt.NDArray[np.int64], Floats]:
    """Where a view's waves stand among the products of a zoom's rows with each other, and their signs: [views, waves] each.

    To mirror an image is to change the sign of every other wave; to turn it, to swap its axes as well.
    """
    places, signs = [], []
    mirror = (-1.0) ** np.arange(_FREQUENCIES)
    for orientation, zoom, (down, right) in VIEWS:
        rows, columns = ((1 + shift) * _FREQUENCIES + np.arange(_FREQUENCIES) for shift in (down, right))
        across = 3 * _FREQUENCIES
        place = (_ZOOMS.index(zoom) * across + rows[:, None]) * across + columns
        sign = np.ones_like(_WAVE) * (mirror if orientation >= 4 else 1)
        for _ in range(orientation % 4):
            place, sign = place.T, (sign * mirror).T
        places.append(place[_LOW])
        signs.append(sign[_LOW])
    return np.array(places), np.array(signs, np.float32)


_PLACES, _SIGNS = _taken()


def views(signatures: Bytes, *, whole: bool = False) -> Floats:
    """Low frequencies of all views of n images, or of the one view of the whole: unit vectors, float32 [n, views, waves]."""
    places, signs = (np.flatnonzero(_LOW)[None], _SIGNS[:1]) if whole else (_PLACES, _SIGNS)
    area, colour_area = SIDE**2, COLOUR_SIDE**2
    codes = np.asarray(signatures, np.float32)
    planes = [(codes[:, :area] * LOG_STEP + LOG[0]).reshape(-1, SIDE, SIDE)]
    for start in (area, area + colour_area):
        colour = (codes[:, start : start + colour_area] - 128) * _COLOUR_STEP
        planes.append(colour.reshape(-1, COLOUR_SIDE, COLOUR_SIDE))
    out = np.empty((len(codes), len(places), 3, _LOW.sum()), np.float32)
    for channel, plane in enumerate(planes):
        rows = _TO_WAVES[plane.shape[1]]
        if whole:
            rows = rows[:1, _FREQUENCIES : 2 * _FREQUENCIES]  # neither zoomed nor shifted
        out[:, :, channel] = (rows @ plane[:, None] @ rows.transpose(0, 2, 1)).reshape(len(codes), -1)[:, places] * signs
    out -= _CENTRE
    out *= _WEIGHT
    flat = out.reshape(*out.shape[:2], -1)
    return np.asarray(flat / np.sqrt(np.einsum("nvw,nvw->nv", flat, flat) + 1e-12)[..., None])


# --- what a view is ---


def oriented(plane: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    """The last two axes as a view looks at them: turned by right angles, orientations 4 to 7 flipped first."""
    orientation = VIEWS[view][0]
    flipped = plane[..., ::-1] if orientation >= 4 else plane
    return np.ascontiguousarray(np.rot90(flipped, orientation % 4, axes=(-2, -1))) if orientation else plane


def _start(view: int) -> Floats:
    """Where a view looks: the affine matrix from thumbnail pixels of the second image to those of the first."""
    _, zoom, (down, right) = VIEWS[view]
    middle = (SIDE - 1) / 2 * (1 - 1 / zoom)
    step = _SHIFT * SIDE / zoom
    return np.array([[1 / zoom, 0, middle + right * step], [0, 1 / zoom, middle + down * step]], np.float32)


STARTS = [_start(view) for view in range(len(VIEWS))]
