"""From the bytes of an image file to an RGB array of the asked size; whatever is not whole is refused.

What becomes of each kind of file (a test holds every line):

    JPEG, grey or colour        RGB; libjpeg's warnings are errors (cut, damaged, or with a hole: "damaged")
    JPEG, CMYK or YCCK          refused, "colour_space": without its printing profile the colours would be a guess
    PNG, grey, palette, 1 bit   RGB; every chunk's CRC is checked ("damaged") and the last chunk must be there ("truncated")
    PNG, 16 bits                scaled to 8 bits by rounding value / 257
    PNG with alpha              alpha dropped where all of it is opaque, else refused, "transparent"
    PNG, animated               refused, "animated"
    EXIF orientation            applied, in JPEG and PNG
    anything else               refused, "unsupported", whatever the file's ending says
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from components.ingest.scratch import Scratch

Bytes = bytes | memoryview
Pixels = npt.NDArray[np.uint8]
Resize = Literal["stretch", "crop", "pad"]

DECODER = "strict-3"  # raise the number when a file's pixels may come out otherwise
INTERPOLATION = "antialiased bilinear"

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_EXIF, _EXIF_WITHIN = b"Exif\0\0", 4096  # the EXIF segment is the first or, after JFIF's, the second
_ORIENTATION = 0x0112
_DECODED, _BLURRED = Scratch(), Scratch()
_LEAST_BLUR = 0.05  # pixels; less moves no value by a grey level


class RejectedError(Exception):
    """An image that can not be used; `reason` is one of a fixed vocabulary, `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image ready for a shard: uint8 RGB [size, size, 3], its digests, and its upright original size in pixels."""

    pixels: Pixels
    source_digest: str
    pixel_digest: str
    width: int
    height: int


def decode(data: Bytes, size: int, max_pixels: int, mode: Resize = "stretch") -> Decoded:
    """Decode an image file's bytes and bring it to [size, size].

    Raises
    ------
    RejectedError
        reason "empty", "unsupported", "unreadable", "too_large", "truncated", "damaged", "colour_space", "transparent" or
        "animated".
    """
    pixels, width, height = scaled_pixels(data, size, max_pixels, mode)
    return Decoded(
        pixels=pixels,
        source_digest="sha256:" + hashlib.sha256(data).hexdigest(),
        pixel_digest="sha256:" + hashlib.sha256(pixels.data).hexdigest(),
        width=width,
        height=height,
    )


def scaled_pixels(data: Bytes, size: int, max_pixels: int, mode: Resize) -> tuple[Pixels, int, int]:
    """The pixels [size, size, 3] of an image file, and its upright width and height; raises as `decode` does."""
    if len(data) == 0:
        raise RejectedError("empty", "the file has no bytes")
    if _starts(data, _JPEG):
        pixels, (height, width) = _decode_jpeg(data, max_pixels)
    elif _starts(data, _PNG):
        pixels, (height, width) = _decode_png(data, max_pixels)
    else:
        raise RejectedError("unsupported", f"neither JPEG nor PNG: the file starts with {bytes(data[:8])!r}")
    turn = _orientation(data)
    if turn != 1:
        pixels = _upright(pixels, turn)
        width, height = (height, width) if turn >= 5 else (width, height)
    scaled = np.ascontiguousarray(resize(pixels, size, mode))
    return scaled.copy() if np.may_share_memory(scaled, pixels) else scaled, width, height


def resize(pixels: Pixels, size: int, mode: Resize = "stretch") -> Pixels:
    """Bring an image [height, width, 3] or [height, width] to [size, size].

    "stretch" scales each axis alone, as the study does; "crop" takes the centre square; "pad" keeps everything and puts
    black beside it. An axis that shrinks by a factor f is first blurred by a Gaussian of (f - 1) / 2 pixels, then sampled
    bilinearly: the antialiasing rule of skimage.transform.resize.
    """
    height, width = pixels.shape[:2]
    if mode == "crop" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    if mode == "pad" and height != width:
        longer = max(height, width)
        inner = _scaled(pixels, max(1, round(height * size / longer)), max(1, round(width * size / longer)))
        out = np.zeros((size, size, *pixels.shape[2:]), np.uint8)
        top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
        out[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return out
    return _scaled(pixels, size, size)


def decode_mask(data: Bytes, size: int, max_pixels: int, mode: Resize = "stretch") -> Pixels:
    """An expert mask as uint8 0/1 [size, size]: shrunk by area, then lesion where at least half is covered.

    Raises
    ------
    RejectedError
        reason "unreadable_mask".
    """
    try:
        grey, _ = _decode_png(data, max_pixels, flag=cv2.IMREAD_GRAYSCALE)
    except RejectedError as error:
        raise RejectedError("unreadable_mask", f"the mask can not be decoded: {error.detail}") from error
    height, width = grey.shape
    shrinks = height >= size and width >= size and mode == "stretch"
    scaled = cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA) if shrinks else resize(grey, size, mode)
    return (scaled >= 128).astype(np.uint8)


def _decode_jpeg(data: Bytes, max_pixels: int) -> tuple[Pixels, tuple[int, int]]:
    """Pixels and the size in the file, height first; the pixels are gone with the next image.

    All pixels are made, though libjpeg could scale by halves on the way and save a fifth of the time: an image then becomes
    the same input, whether a model is given its file or its pixels.
    """
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _refuse_size(height, width, max_pixels)
        if space in ("CMYK", "YCCK"):
            raise RejectedError("colour_space", f"the JPEG is {space}; save it as RGB")
        pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True, buffer=_DECODED.take(height * width * 3))
    except ValueError as error:
        short = "premature end of jpeg" in str(error).lower()
        raise RejectedError("truncated" if short else "damaged", f"the JPEG is not whole: {error}") from error
    return pixels, (height, width)


def _decode_png(data: Bytes, max_pixels: int, flag: int = cv2.IMREAD_UNCHANGED) -> tuple[Pixels, tuple[int, int]]:
    """Pixels (RGB, or grey for IMREAD_GRAYSCALE) and the size in the file, height first."""
    if not _starts(data, _PNG) or len(data) < 33:
        raise RejectedError("truncated" if _starts(data, _PNG) else "unsupported", "no PNG header")
    width, height = struct.unpack_from(">II", data, 16)
    _refuse_size(height, width, max_pixels)
    _check_chunks(memoryview(data))
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if pixels is None:
        raise RejectedError("damaged", "the PNG's data can not be decoded")
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if flag == cv2.IMREAD_GRAYSCALE:
        return np.asarray(pixels, np.uint8), (height, width)
    if pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), np.uint8), (height, width)
    if pixels.shape[2] == 4:
        if pixels[..., 3].min() < 255:
            raise RejectedError("transparent", "parts of the image are transparent; save it without an alpha channel")
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB), np.uint8), (height, width)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8), (height, width)


def _check_chunks(view: memoryview) -> None:
    """Walk a PNG's chunks to its end mark; each carries the CRC-32 of its name and data (PNG specification, 5.3)."""
    place = len(_PNG)
    while place + 12 <= len(view):
        (length,) = struct.unpack_from(">I", view, place)
        name, end = bytes(view[place + 4 : place + 8]), place + 8 + length
        if end + 4 > len(view):
            break
        if zlib.crc32(view[place + 4 : end]) != struct.unpack_from(">I", view, end)[0]:
            raise RejectedError("damaged", f"the CRC of the PNG's {name.decode('latin-1')!r} chunk is wrong")
        if name == b"acTL":
            raise RejectedError("animated", "the PNG is animated; save the frame that is meant")
        if name == b"IEND":
            return
        place = end + 4
    raise RejectedError("truncated", "the PNG ends before its end mark")


def _refuse_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise RejectedError("too_large", f"{width} x {height} pixels, data.max_pixels is {max_pixels}")
    if height == 0 or width == 0:
        raise RejectedError("unreadable", f"the header says {width} x {height} pixels")


def _orientation(data: Bytes) -> int:
    """The EXIF orientation, 1 to 8 (1 is upright); Pillow reads the EXIF block, which few files have."""
    if (_EXIF not in bytes(data[:_EXIF_WITHIN])) if _starts(data, _JPEG) else (b"eXIf" not in bytes(data)):
        return 1
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            value = image.getexif().get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return 1  # a damaged EXIF block says nothing of the image
    return int(value) if value in range(1, 9) else 1


def _starts(data: Bytes, mark: bytes) -> bool:
    return data[: len(mark)] == mark


def _upright(pixels: Pixels, turn: int) -> Pixels:
    """Undo what orientation says (Exif 2.32, tag 0x0112)."""
    if turn in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _scaled(pixels: Pixels, height: int, width: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    blur_y, blur_x = ((old / new - 1) / 2 for old, new in zip(pixels.shape[:2], (height, width), strict=True))
    if max(blur_y, blur_x) > _LEAST_BLUR:
        kernel = (_kernel_width(blur_x), _kernel_width(blur_y))
        sigma_x, sigma_y = max(blur_x, 0.1), max(blur_y, 0.1)
        blurred = cv2.GaussianBlur(
            pixels, kernel, sigma_x, dst=_BLURRED.take(pixels.size).reshape(pixels.shape), sigmaY=sigma_y
        )
        pixels = np.asarray(blurred, np.uint8)
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _kernel_width(sigma: float) -> int:
    """Three standard deviations to each side; 1 pixel, which blurs nothing, where the axis hardly shrinks or grows."""
    return 2 * max(1, round(3 * sigma)) + 1 if sigma > _LEAST_BLUR else 1
