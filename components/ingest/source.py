"""A source of labelled images: one contract, whatever place `data.source` names.

    a folder, or a .zip file       read in place (components.ingest.folder)
    s3://bucket/prefix             read through boto3 (components.ingest.bucket)
    doi:10.7910/DVN/DBW86T         fetched once into the cache, then read as a folder (components.ingest.dataverse)

What can be known without reading images is known when a source is open: rows and files that can not be used are in
`refused`, each with a reason, and everything in `images` has exactly one row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml

from components.ingest.decode import Bytes
from components.ingest.entries import Entries, Entry
from components.ingest.folder import FolderFiles
from components.ingest.layout import Arranged, Files, arrange
from components.ingest.metadata import METADATA_COLUMNS, REJECT_COLUMNS
from dermaflow.errors import InputError
from dermaflow.params import DataParams

__all__ = ["METADATA_COLUMNS", "REJECT_COLUMNS", "Entry", "Source", "open_source"]


class Source:
    """An open source.

    Attributes
    ----------
    root: `data.source` as it was given.
    metadata: METADATA_COLUMNS, one row an image, ordered by image_id; age is float, NaN where unknown.
    refused: REJECT_COLUMNS, rows and files that can not be used: rows in the order of the table, then files by uri.
    images: the file of each image in `metadata`, by id.
    masks: expert masks by image id, where there is one.
    description: name, uri, synthetic, licence, dvc_revision, subset, layout, what is unknown of lesions, and what
        else a source.json says (dermaflow.description).
    classes: in their order: those that a source.json names, or HAM10000's.
    concurrency: how many threads may well read at a time.
    """

    def __init__(self, files: Files, arranged: Arranged, root: str, description: dict[str, Any]) -> None:
        self.root = root
        self.metadata: pd.DataFrame = arranged.metadata
        self.refused: pd.DataFrame = arranged.refused
        self.images: Entries = arranged.images
        self.masks: Entries = arranged.masks
        self.description = description
        self.classes = arranged.said.class_order
        self.concurrency = files.concurrency
        self._files = files

    def read(self, entry: Entry) -> Bytes:
        """The bytes of an image or mask, good until this thread reads again; may be called from many threads.

        Raises
        ------
        RejectedError
            when this file can not be used.
        InputError
            when its store does not answer for longer than `data.patience_seconds`, or refuses access.
        """
        return self._files.read(entry)

    def known_digests(self, entries: Iterable[Entry]) -> list[str | None]:
        """SHA-256 of each entry's bytes as "sha256:<hex>" where an earlier read tells it, else None."""
        return self._files.fingerprints.known(entries)

    def remember(self, found: Iterable[tuple[Entry, str]]) -> None:
        """Note digests ("sha256:<hex>") of entries that were read, so that the next run need not read them to know them."""
        self._files.fingerprints.keep(found)

    def digest(self) -> str:
        """Digest of all that ingest would read: rows, refusals, names and bytes; it does not depend on times or machines."""
        told = {name: value for name, value in self.description.items() if name != "uri"}
        sha = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for table in (self.metadata, self.refused):
            for start in range(0, len(table), 5000):  # rows that are text at a time
                sha.update(table.iloc[start : start + 5000].to_csv(index=False).encode())
        for entries in (self.images, self.masks):
            for entry, digest in zip(entries.in_order(), self._files.digests(entries.in_order()), strict=True):
                sha.update(f"\n{entry.uri}\t{digest}".encode())
            sha.update(b"\n")
        return "sha256:" + sha.hexdigest()


def open_source(params: DataParams) -> Source:
    """Open `data.source`: list its files, read its metadata, match the two.

    Raises
    ------
    InputError
        naming the file, the column or the value that can not be used, and what to do.
    """
    files, folder = _files_of(params)
    arranged = arrange(files, params)
    pa.default_memory_pool().release_unused()  # tables came and went; at 100,000 images Arrow would keep 60 MB of them
    return Source(files, arranged, params.source, _describe(arranged, folder, params))


def _files_of(params: DataParams) -> tuple[Files, Path | None]:
    """The files of a source, and its folder where it is a local one."""
    if params.source.startswith("s3://"):
        from components.ingest.bucket import BucketFiles

        return BucketFiles(params), None
    if params.source.lower().startswith("doi:"):
        from components.ingest.dataverse import fetched_folder

        return FolderFiles(fetched_folder(params), params.max_file_bytes), None
    path = Path(params.source)
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".zip"):
        raise InputError(f"data.source: {path} is not a folder; {_hint(path)}")
    return FolderFiles(path, params.max_file_bytes), path


def _hint(path: Path) -> str:
    if "phantom" in path.name:
        return "draw synthetic images with: dermaflow data phantom data/phantom"
    return (
        "give a folder in HAM10000's layout (a *metadata*.csv and folders of images, or its zip parts), a folder of class "
        "folders, a .zip, s3://bucket/prefix or doi:..."
    )


def _describe(arranged: Arranged, folder: Path | None, params: DataParams) -> dict[str, Any]:
    said = arranged.said
    name = folder.resolve().name if folder else params.source.rstrip("/").partition(":")[2].lstrip("/")
    described = {
        "name": said.name or name,
        "uri": params.source,
        "synthetic": said.synthetic,
        "licence": said.licence or params.licence,
        "dvc_revision": _dvc_revision(folder) if folder else None,
        "subset": params.subset.model_dump(mode="json") if params.subset else None,
        "layout": arranged.layout,
    }
    described |= said.told()
    if arranged.layout == "class_folders":
        described["lesions"] = "unknown: each image counts as a lesion"
    return described


def _dvc_revision(folder: Path) -> str | None:
    """The digest under which DVC tracks the folder (`<folder>.dvc` or dvc.lock), if it does."""
    pointer = folder.with_name(folder.name + ".dvc")
    if pointer.exists():
        return str(yaml.safe_load(pointer.read_text())["outs"][0]["md5"])
    return next((str(out["md5"]) for out in _locked_outs() if Path(out["path"]) == folder), None)


def _locked_outs() -> Iterator[dict[str, Any]]:
    lock = Path("dvc.lock")
    if lock.exists():
        for stage in (yaml.safe_load(lock.read_text()) or {}).get("stages", {}).values():
            yield from stage.get("outs", ())
