"""The Dataset artifact: uint8 image shards, memory-mapped, and a manifest with one row an image.

Files: `manifest.parquet`, `shard-00000.npy` ... (uint8 RGB [n, size, size, 3]), `truth-00000.npy` ... (expert masks as
packed bits, uint8 [n, size, ceil(size / 8)], only where the source has masks), `signature-00000.npy` ... (what near
duplicates are found by, [n, length]), `rejects.parquet`, `rejects/<row>.jpg` (what can be seen of the first of them),
`neighbours.parquet` and `dataset.json`.

A dataset grows by whole shards: rows keep their places. A row of an image that was withdrawn stays in the manifest as a
tombstone and is never drawn; a place whose image can not be used any more has no row.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dermaflow.artifacts import Artifact, open_artifact, read_json
from dermaflow.errors import InputError

pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps up to 60 MB of what was freed, in every step
Images = npt.NDArray[np.uint8]
Index = npt.NDArray[np.int64] | slice
KIND = "dataset"
GLIMPSES = "rejects"  # folder of `<row of rejects.parquet>.jpg`, of the first REJECTS_SHOWN that have a picture
REJECTS_SHOWN = 20  # a person looks at so many
CLINICAL_COLUMNS = ("dx_type", "age", "sex", "localization")
PROPERTIES = (
    *("brightness", "contrast", "sharpness", "entropy"),
    *("hair_share", "vignette_share", "ink_share"),
)  # measured on every image by components/ingest/properties.py, judged by the suite of the manifest
IMAGE_COLUMNS = (
    "image_id",
    "source_uri",
    "source_digest",
    "truth_digest",
    "pixel_digest",
    "perceptual_hash",
    "original_width",
    "original_height",
    "has_truth",
    *PROPERTIES,
    "shard",
    "row",
)  # what an image's files say
MANIFEST_COLUMNS = ("image_id", "lesion_id", "label", *CLINICAL_COLUMNS, "parent_id", *IMAGE_COLUMNS[1:], "withdrawn")
_SINCE: dict[str, Any] = {"withdrawn": False, "parent_id": ""}  # columns that older files lack, and what they would hold


def read_manifest(folder: Path, columns: Container[str] | None = None) -> pd.DataFrame:
    """The manifest in a Dataset's folder, tombstones included: those of the given columns that it has, or all."""
    path = folder / "manifest.parquet"
    there = pq.read_schema(path).names
    wanted = [name for name in there if columns is None or name in columns]
    table = pd.read_parquet(path, columns=wanted, memory_map=True, pre_buffer=False)  # half the memory on top of the rows
    return table.assign(**{name: value for name, value in _SINCE.items() if name not in there})


def active_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a manifest that are no tombstones."""
    return rows[~rows["withdrawn"]].reset_index(drop=True) if rows["withdrawn"].any() else rows


def originals(rows: pd.DataFrame) -> pd.Series[str]:
    """For each row (image_id, parent_id) the id of the photograph that the image was made from, or is."""
    return rows["parent_id"].where(rows["parent_id"] != "", rows["image_id"])


def _index(places: npt.NDArray[np.int64]) -> Index:
    """The same index, as a slice where it has no holes: that copies twice as fast."""
    first, last = int(places[0]), int(places[-1])
    whole = last - first + 1 == len(places) and bool((np.diff(places) == 1).all())
    return slice(first, last + 1) if whole else places


@dataclass(frozen=True)
class Dataset:
    """A finished Dataset artifact.

    Attributes
    ----------
    artifact: folder and digests.
    info: what `dataset.json` says.
    """

    artifact: Artifact
    info: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Open a Dataset folder; raises InputError when it is not a finished one."""
        artifact = open_artifact(path, KIND)
        return cls(artifact=artifact, info=read_json(path / "dataset.json"))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class order: position k is the k-th logit."""
        return tuple(self.info["class_order"])

    @property
    def image_size(self) -> int:
        """Image side in pixels."""
        return int(self.info["image_size"])

    @property
    def synthetic(self) -> bool:
        """Whether the images are drawn, not photographed."""
        return bool(self.info["source"]["synthetic"])

    @property
    def mark(self) -> str | None:
        """What nobody may overlook in anything that is made of these images, or None: paper protocol, not promotable."""
        mark = self.info["source"].get("mark")
        return None if mark is None else str(mark)

    @property
    def content_digest(self) -> str:
        """Digest of what the images and labels are, whatever the order in which they came."""
        return str(self.info["content_digest"])

    @property
    def version(self) -> dict[str, str | None]:
        """What names this data in everything made from it: content_digest, and DVC's revision of the source if it has one."""
        return {"content_digest": self.content_digest, "dvc_revision": self.info["source"]["dvc_revision"]}

    @cached_property
    def all_rows(self) -> pd.DataFrame:
        """The manifest as it is on disk, in the order of the shards, with MANIFEST_COLUMNS; tombstones included."""
        return read_manifest(self.artifact.path)

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """One row an image that may be used, in the order of the shards, with MANIFEST_COLUMNS."""
        return active_rows(self.all_rows)

    def columns(self, *names: str) -> pd.DataFrame:
        """Those of the given columns that `manifest` has, read for the occasion: of 100,000 images all of them take 40 MB."""
        rows = active_rows(read_manifest(self.artifact.path, {*names, "withdrawn"}))
        return rows[[name for name in names if name in rows]]

    @cached_property
    def rejects(self) -> pd.DataFrame:
        """Images that were refused: uri, image_id, reason, detail."""
        return pd.read_parquet(self.artifact.path / "rejects.parquet")

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class index of each manifest row, int64 [n]."""
        index = {name: position for position, name in enumerate(self.classes)}
        return np.asarray([index[label] for label in self.manifest["label"]], dtype=np.int64)

    def rows_of(self, image_ids: pd.Series[str]) -> npt.NDArray[np.int64]:
        """Manifest row numbers of image ids, int64 [k]; raises InputError for an id that is not in the manifest."""
        positions = pd.Series(np.arange(len(self.manifest)), index=self.manifest["image_id"])
        missing = image_ids[~image_ids.isin(positions.index)]
        if len(missing):
            raise InputError(
                f"{self.artifact.path}: image {missing.iloc[0]} is not in this dataset; use artifacts of the same run"
            )
        return positions.loc[image_ids].to_numpy(dtype=np.int64)

    def images(self, rows: npt.NDArray[np.int64]) -> Images:
        """Copies of the images of the given manifest rows, uint8 RGB [k, size, size, 3], in the order of `rows`."""
        out = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
        for shard, here, at in self.by_shard(rows):
            out[here] = self._shards[shard][at]
        return out

    def truth(self, rows: npt.NDArray[np.int64]) -> Images:
        """Expert masks of the given rows, uint8 0/1 [k, size, size]; all zero where there is none (see `has_truth`)."""
        out = np.zeros((len(rows), self.image_size, self.image_size), np.uint8)
        for shard, here, at in self.by_shard(rows):
            path = self.artifact.path / f"truth-{shard:05d}.npy"
            if path.exists():
                out[here] = np.unpackbits(np.load(path, mmap_mode="r")[at], axis=-1, count=self.image_size)
        return out

    def signatures(self, place: Path) -> npt.NDArray[Any]:
        """What near duplicates are found by, [n, length] for n manifest rows; mapped from a file at `place`."""
        rows = np.arange(len(self._places), dtype=np.int64)
        out: npt.NDArray[Any] = np.empty((0, 0), np.uint8)
        for shard, here, at in self.by_shard(rows):
            part = np.load(self.artifact.path / f"signature-{shard:05d}.npy", mmap_mode="r")
            if not out.size:
                out = np.lib.format.open_memmap(place, mode="w+", dtype=part.dtype, shape=(len(rows), part.shape[1]))
            out[here] = part[at]
        return out

    @property
    def shards(self) -> tuple[int, ...]:
        """Numbers of the shard files, ascending."""
        return tuple(self._shards)

    def shard_length(self, shard: int) -> int:
        """Places in a shard file; some may have no row in the manifest."""
        return len(self._shards[shard])

    def shard_rows(self, shard: int) -> npt.NDArray[np.int64]:
        """Manifest rows that lie in a shard, in its order, int64 [k]."""
        return np.flatnonzero(self._places["shard"].to_numpy() == shard)

    def by_shard(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, Index, Index]]:
        """For each shard that holds some of the given manifest rows: its number, positions in `rows`, places in the shard."""
        shards, places = (self._places[name].to_numpy()[rows] for name in ("shard", "row"))
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            yield int(shard), _index(here), _index(places[here])

    @cached_property
    def _places(self) -> pd.DataFrame:
        return self.columns("shard", "row")

    @cached_property
    def _shards(self) -> dict[int, Images]:
        paths = sorted(self.artifact.path.glob("shard-*.npy"))
        return {int(path.stem.removeprefix("shard-")): np.load(path, mmap_mode="r") for path in paths}
