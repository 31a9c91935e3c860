"""Pictures of the run report as data: URIs: those of the artifacts, and a sample of the images."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from dermaflow.dataset import Dataset

PICTURE_BYTES = 750_000  # of one picture at most: a report has about a dozen, and stays well below 15 MB in base64
SAMPLES_PER_CLASS = 4
SAMPLE_SIDE = 160  # pixels: sharp at twice the size at which it is shown


@dataclass(frozen=True)
class Picture:
    """A picture in the page: its data: URI and its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """One image of the sample, with what is known of it; `split` is None where the split step did not finish."""

    picture: Picture
    image_id: str
    split: str | None


def embed(path: Path) -> Picture | None:
    """A PNG of an artifact; as JPEG where that is smaller (photographs), and scaled down where it is still too large."""
    if not path.is_file():
        return None
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    plain = path.read_bytes()
    photograph = _jpeg(image, quality=90)
    if len(plain) <= min(len(photograph), PICTURE_BYTES):
        return _picture(plain, "png", image)
    while len(photograph) > PICTURE_BYTES:
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.LANCZOS)
        photograph = _jpeg(image, quality=90)
    return _picture(photograph, "jpeg", image)


def photograph(path: Path) -> Picture | None:
    """A JPEG of an artifact, as it is; None where there is none."""
    if not path.is_file():
        return None
    with Image.open(path) as opened:
        return _picture(path.read_bytes(), "jpeg", opened)


def sample(dataset: Dataset, split_of: dict[str, str], seed: int) -> dict[str, list[Sample]]:
    """Up to SAMPLES_PER_CLASS images of each class, in the order of a hash of (seed, image id).

    Parameters
    ----------
    split_of: split of each image id; empty where it is not known.
    """
    labels = dataset.manifest["label"]
    return {name: _sample_class(dataset, dataset.manifest[labels == name], split_of, seed) for name in dataset.classes}


def _sample_class(dataset: Dataset, rows: pd.DataFrame, split_of: dict[str, str], seed: int) -> list[Sample]:
    keys = [hashlib.sha256(f"{seed}/{image_id}".encode()).hexdigest() for image_id in rows["image_id"]]
    chosen = rows.assign(key=keys).sort_values("key").head(SAMPLES_PER_CLASS)
    images = dataset.images(chosen.index.to_numpy(np.int64))
    return [
        Sample(_thumbnail(pixels), image_id, split_of.get(image_id))
        for pixels, image_id in zip(images, chosen["image_id"], strict=True)
    ]


def _thumbnail(pixels: npt.NDArray[np.uint8]) -> Picture:
    image = Image.fromarray(pixels)
    image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE), Image.Resampling.LANCZOS)
    return _picture(_jpeg(image, quality=85), "jpeg", image)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)  # full colour: thin coloured outlines stay sharp
    return buffer.getvalue()


def _picture(data: bytes, kind: str, image: Image.Image) -> Picture:
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", image.width, image.height)
