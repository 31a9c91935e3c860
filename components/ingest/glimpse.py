"""What can be seen of an image that was refused: a small picture for the person who is to mend the source."""

from __future__ import annotations

import io
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import pandas as pd
from PIL import Image, ImageFile

from components.ingest.decode import RejectedError
from components.ingest.source import Source
from dermaflow.dataset import GLIMPSES, REJECTS_SHOWN

SIDE, QUALITY = 160, 85  # px
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, zlib.error, Image.DecompressionBombError)


def write_glimpses(rejects: pd.DataFrame, source: Source, max_pixels: int, folder: Path) -> None:
    """Write `<row of rejects>.jpg` for those of the first REJECTS_SHOWN that can be read at all, into a Dataset's folder.

    Parameters
    ----------
    rejects: as rejects.parquet has them.
    """
    shown = rejects.head(REJECTS_SHOWN)
    entries = {entry.uri: entry for entry in source.images.find(shown["image_id"].tolist()).values()}
    for row, uri in enumerate(shown["uri"]):
        picture = None
        with suppress(RejectedError):
            picture = glimpse(bytes(source.read(entries[uri])), max_pixels) if uri in entries else None
        if picture is not None:
            (folder / GLIMPSES).mkdir(exist_ok=True)
            (folder / GLIMPSES / f"{row}.jpg").write_bytes(picture)


def glimpse(data: bytes, max_pixels: int) -> bytes | None:
    """An image file's picture as a JPEG of at most SIDE pixels a side, as far as it can be read; None where it can not.

    What is missing of a file that was cut off is grey. Nothing of more than `max_pixels` is decoded.
    """
    patient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > max_pixels:
                return None
            image.draft("RGB", (SIDE, SIDE))  # a JPEG is scaled by halves while it is decoded
            small = image.convert("RGB")
            small.thumbnail((SIDE, SIDE))
    except _UNREADABLE:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = patient
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
