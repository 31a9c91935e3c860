"""From the bytes of an image file to an RGB array of the asked size; a file that is cut short is refused."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"  # the last scan's start must come before the last end marker
HASH_SIDE = 8


class RejectedError(Exception):
    """An image that can not be used; `reason` is one of a fixed vocabulary, `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Decoded:
    """An image ready for a shard: uint8 RGB [size, size, 3], its digests and its original size in pixels."""

    pixels: npt.NDArray[np.uint8]
    source_digest: str
    pixel_digest: str
    perceptual_hash: str
    width: int
    height: int


def decode(data: bytes, size: int, max_pixels: int) -> Decoded:
    """Decode an image file's bytes and scale both axes to `size` with antialiasing (area averaging).

    Raises
    ------
    RejectedError
        reason "empty", "unreadable", "too_large" or "truncated".
    """
    if not data:
        raise RejectedError("empty", "the file has no bytes")
    try:
        with Image.open(io.BytesIO(data)) as header:  # reads the header only
            width, height, kind = *header.size, header.format
    except Image.DecompressionBombError as error:
        raise RejectedError("too_large", f"{error}; data.max_pixels is {max_pixels}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise RejectedError("unreadable", f"no image header: {type(error).__name__}") from error
    if width * height > max_pixels:
        raise RejectedError("too_large", f"{width} x {height} pixels, data.max_pixels is {max_pixels}")
    if kind == "JPEG" and data.rfind(JPEG_END) < data.rfind(JPEG_SCAN):  # libjpeg would fill the rest with grey, and only warn
        raise RejectedError("truncated", "the JPEG has no end marker")
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise RejectedError("unreadable", f"the {kind} data can not be decoded")
    pixels = resize(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8), size)
    return Decoded(
        pixels=pixels,
        source_digest="sha256:" + hashlib.sha256(data).hexdigest(),
        pixel_digest="sha256:" + hashlib.sha256(pixels.tobytes()).hexdigest(),
        perceptual_hash=difference_hash(pixels),
        width=width,
        height=height,
    )


def resize(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Scale an image or mask to [size, size]: area averaging when shrinking, bilinear when growing."""
    if pixels.shape[:2] == (size, size):
        return pixels
    shrinking = pixels.shape[0] >= size and pixels.shape[1] >= size
    return np.asarray(
        cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR), np.uint8
    )


def decode_mask(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """An expert mask as uint8 0/1 [size, size]: shrunk by area, then lesion where at least half is covered.

    Raises
    ------
    RejectedError
        reason "unreadable_mask".
    """
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    if grey is None:
        raise RejectedError("unreadable_mask", "the mask can not be decoded")
    return (resize(np.asarray(grey, np.uint8), size) >= 128).astype(np.uint8)


def difference_hash(pixels: npt.NDArray[np.uint8]) -> str:
    """A 64-bit difference hash (is a pixel brighter than its left neighbour, on a 9 x 8 grey thumbnail), as 16 hex digits."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes().hex()
