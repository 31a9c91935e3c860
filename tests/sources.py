"""Small sources of images in HAM10000's layout, what tests do to them, and parameters that fit them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from dermaflow.artifacts import new_artifact, write_json
from dermaflow.dataset import KIND, Dataset
from dermaflow.params import AugmentParams, DataParams, MixupParams, SplitParams, ValidateParams

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DERMAFLOW_SHARED", ROOT.parent / "shared"))
METADATA_FILE = "HAM10000_metadata.csv"
SIZE = 32  # px, the smallest that the parameters allow
HAM10000_LEAKAGE = {"all": 0.385, "mel": 0.679}  # expected share of a random split's test images with a relative in train


@dataclass(frozen=True)
class SourceFolder:
    """A source on disk that a test may spoil."""

    path: Path

    @property
    def metadata(self) -> pd.DataFrame:
        """The metadata as it is in the file: text."""
        return pd.read_csv(self.path / METADATA_FILE, dtype=str, keep_default_na=False)

    def write_metadata(self, table: pd.DataFrame) -> None:
        """Replace the metadata."""
        table.to_csv(self.path / METADATA_FILE, index=False)

    def set(self, image_id: str, **values: str) -> None:
        """Change fields of one image's metadata row."""
        table = self.metadata
        table.loc[table["image_id"] == image_id, list(values)] = list(values.values())
        self.write_metadata(table)

    def image(self, image_id: str) -> Path:
        """The image's file."""
        return self.path / "images" / f"{image_id}.jpg"

    def mask(self, image_id: str) -> Path:
        """The mask's file."""
        return self.path / "masks" / f"{image_id}_segmentation.png"

    def ids(self, label: str) -> list[str]:
        """Image ids of a class, in order."""
        table = self.metadata
        return sorted(table.loc[table["dx"] == label, "image_id"])

    def lesion_with_several_images(self) -> list[str]:
        """Image ids of the first lesion that has more than one."""
        groups = self.metadata.groupby("lesion_id")["image_id"].apply(sorted)
        return list(next(ids for ids in groups if len(ids) > 1))


def draw_source(
    folder: Path, pictures: dict[str, npt.NDArray[np.uint8]], ending: str = ".png", **columns: list[str]
) -> SourceFolder:
    """A source of pictures (uint8 RGB or grey, by image id), each a nevus of its own lesion unless `columns` say so."""
    import cv2

    (folder / "images").mkdir(parents=True)
    for image_id, pixels in pictures.items():
        cv2.imwrite(str(folder / "images" / (image_id + ending)), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    table = pd.DataFrame(
        {
            "lesion_id": [f"L_{image_id}" for image_id in pictures],
            "image_id": list(pictures),
            "dx": "nv",
            "dx_type": "histo",
            "age": "45.0",
            "sex": "female",
            "localization": "back",
        }
    )
    source = SourceFolder(folder)
    source.write_metadata(table.assign(**columns))
    return source


def data_params(source: Path, **changes: Any) -> DataParams:
    """Parameters to ingest a small source; one broken image of 42 is within the ceiling."""
    values = {
        "source": str(source),
        "repository": "https://dataverse.harvard.edu",
        "image_size": SIZE,
        "resize": "stretch",
        "subset": None,
        "max_reject_share": 0.5,
        "max_withdrawn_share": 1.0,
        "erase_withdrawn": False,
        "max_pixels": 1_000_000,
        "max_file_bytes": 50_000_000,
        "patience_seconds": 30,
        "shard_megabytes": 150,
        "licence": "CC0-1.0",
    }
    return DataParams(**{**values, **changes})


def split_params(**changes: Any) -> SplitParams:
    """The study's 80/10/10, by lesion."""
    values = {"strategy": "lesion", "train": 0.8, "validation": 0.1, "test": 0.1, "folds": 0, "seed": 20240101}
    return SplitParams(**{**values, "previous": "none", **changes})


def augment_params(**changes: Any) -> AugmentParams:
    """All transforms on, classes balanced."""
    values = {
        "balance": "sampler",
        "targets": {},
        "before_split": False,
        "flips": True,
        "right_angle_turns": True,
        "scale": 0.1,
        "brightness": 0.1,
        "hue": 0.02,
        "feature_views": 3,
        "materialize": False,
        "seed": 20240101,
    }
    return AugmentParams(**{**values, **changes})


MIXUP = MixupParams(alpha=0.2, space="pixels", fixed_mixes=0)
VALIDATE = ValidateParams(
    min_lesions_per_class=3,
    max_unknown_share=0.25,
    max_reject_share=0.05,
    max_artefact_gap=0.1,
    max_split_deviation=0.1,
    max_fallback_share=0.1,
    drift_ks=0.1,
    drift_psi=0.25,
    drift_p=0.01,
    reference="",
    reference_splits="",
)


def with_manifest(dataset: Path, target: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """A copy of a Dataset artifact with a changed manifest, sealed anew."""
    opened = Dataset.open(dataset)
    with new_artifact(target, KIND) as folder:
        for file in opened.artifact.files:
            shutil.copy2(dataset / file, folder / file)
        change(opened.manifest.copy()).to_parquet(folder / "manifest.parquet", index=False)
        write_json(folder / "dataset.json", opened.info)
    return target


def real_metadata() -> pd.DataFrame:
    """HAM10000's own metadata with the manifest's column names; skips the test where it is not at hand."""
    path = SHARED / "data" / "ham10000" / METADATA_FILE
    if not path.is_file():
        pytest.skip("needs HAM10000's metadata; set DERMAFLOW_SHARED to the folder that holds data/ham10000")
    return with_digests(pd.read_csv(path).rename(columns={"dx": "label"}))


def with_digests(manifest: pd.DataFrame) -> pd.DataFrame:
    """A manifest whose images have bytes and pixels of their own, as far as digests tell."""
    return manifest.assign(source_digest="bytes of " + manifest["image_id"], pixel_digest="pixels of " + manifest["image_id"])


def no_neighbours() -> pd.DataFrame:
    """A neighbours table without pairs."""
    return neighbours()


def neighbours(*pairs: tuple[str, str]) -> pd.DataFrame:
    """A neighbours table of the given pairs."""
    return pd.DataFrame([(a, b, 0.0, 1.0) for a, b in pairs], columns=["image_a", "image_b", "distance", "score"])
