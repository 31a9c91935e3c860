"""The files of a source: one at a time as an Entry or a Fault, and many of them as lean columns.

A hundred thousand files cost about 10 MB here, not the 60 MB of as many Python objects: an Entry is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dermaflow.errors import shown

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
MASK_ENDING = "_segmentation.png"
TABLE_ENDINGS = (".csv", ".tab", ".tsv", ".txt")
UNSUPPORTED_ENDINGS = (  # images, or archives of them, that ingest does not read: told, so that nobody misses them
    *(".heic", ".heif", ".dcm", ".dicom", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".jp2", ".j2k", ".avif", ".svg"),
    *(".jfif", ".jpe", ".jxl", ".raw", ".cr2", ".nef", ".dng", ".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar"),
)
_BATCH = 4096  # files that are Python objects at a time


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a source.

    Attributes
    ----------
    uri: where it is, for people, the same on every machine: relative to the source's root ("images/ISIC_1.jpg",
        "part_1.zip/ISIC_1.jpg").
    size: in bytes.
    version: a token that changes whenever the bytes may have changed.
    """

    uri: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A file that can not be used, known before it is read."""

    uri: str
    reason: str
    detail: str


class Entries(Mapping[str, Entry]):
    """Files by image id: columns ordered by id, searched by bisection."""

    def __init__(self, files: pd.DataFrame) -> None:
        """`files` has the columns of `FileColumns.frame`, each id once."""
        files = files.sort_values("image_id")
        self._ids = text_array(files["image_id"])
        self._uris = pa.array(files["uri"], pa.large_string())
        self._versions = pa.array(files["version"], pa.large_string())
        self._sizes = files["size"].to_numpy(np.int64)

    def __getitem__(self, image_id: str) -> Entry:
        row = find_text(self._ids, image_id)
        if row is None:
            raise KeyError(image_id)
        return Entry(self._uris[row].as_py(), int(self._sizes[row]), self._versions[row].as_py())

    def find(self, image_ids: Sequence[str]) -> dict[str, Entry]:
        """The files of those ids that have one, by one search for all: a tenth of the time of one for each."""
        if not len(self) or not len(image_ids):
            return {}
        wanted: npt.NDArray[np.bytes_] = np.array([text.encode(errors="surrogateescape") for text in image_ids], np.bytes_)
        rows = np.minimum(np.searchsorted(self._ids, wanted), len(self) - 1)
        there = np.flatnonzero(self._ids[rows] == wanted)
        rows = rows[there]
        columns = (self._uris.take(rows).to_pylist(), self._sizes[rows].tolist(), self._versions.take(rows).to_pylist())
        return dict(zip((image_ids[place] for place in there.tolist()), map(Entry, *columns), strict=True))

    def __iter__(self) -> Iterator[str]:
        return (value.decode() for value in self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def in_order(self) -> Iterator[Entry]:
        """All files, ordered by image id, without a search for each."""
        for start in range(0, len(self), _BATCH):
            part = slice(start, start + _BATCH)
            columns = (self._uris[part].to_pylist(), self._sizes[part].tolist(), self._versions[part].to_pylist())
            yield from map(Entry, *columns)


class FileColumns:
    """Collects files (image id and Entry) and holds them as columns."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, str, int, str]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, image_id: str, entry: Entry) -> None:
        """Take in one file."""
        self._pending.append((image_id, entry.uri, entry.size, entry.version))
        if len(self._pending) == _BATCH:
            self._flush()

    def frame(self) -> pd.DataFrame:
        """All files: image_id, uri, size (bytes), version; ordered by id, then uri."""
        self._flush()
        table = pa.Table.from_batches(self._batches).sort_by([("image_id", "ascending"), ("uri", "ascending")])
        frame: pd.DataFrame = table.to_pandas()
        return frame

    def _flush(self) -> None:
        columns = list(zip(*self._pending, strict=True)) or [(), (), (), ()]
        types = (pa.large_string(), pa.large_string(), pa.int64(), pa.large_string())
        arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, names=["image_id", "uri", "size", "version"]))
        self._pending.clear()


def text_array(texts: pd.Series[str]) -> npt.NDArray[np.bytes_]:
    """Short texts as fixed-width UTF-8 bytes, in the order given: what `find_text` searches."""
    return np.asarray([text.encode() for text in texts.tolist()], dtype=np.bytes_)


def find_text(ordered: npt.NDArray[np.bytes_], text: str) -> int | None:
    """Row of a text in an array ordered by its bytes, or None."""
    wanted = text.encode(errors="surrogateescape")
    row = int(np.searchsorted(ordered, np.bytes_(wanted)))
    return row if row < len(ordered) and ordered[row] == wanted else None


def among(texts: pd.Series[str], others: Iterable[str]) -> pd.Series[bool]:
    """Which texts are in `others`: pandas' isin makes a Python object of each, which takes longer than all the rest."""
    wanted = pa.array(others if isinstance(others, pd.Series) else list(others), pa.large_string())
    return pd.Series(np.asarray(pc.is_in(pa.array(texts, pa.large_string()), value_set=wanted)), texts.index, dtype=bool)


def looks_like_image(name: str) -> bool:
    """Whether a file of this name claims to be an image, of a kind that ingest reads or not."""
    return name.lower().endswith((*IMAGE_ENDINGS, *UNSUPPORTED_ENDINGS))


def plain(text: str) -> str:
    """A foreign name as it is when it is short and printable, else as `shown`: what tables hold."""
    return text if text.isprintable() and len(text) <= 1024 else shown(text)
