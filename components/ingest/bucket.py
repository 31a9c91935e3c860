"""The files of a source below s3://bucket/prefix, in the same layouts as in a folder; archives are not read there.

A file's version is its entity tag, size and time. The source's digest follows tags and sizes: nothing is fetched for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from components.ingest.decode import RejectedError
from components.ingest.entries import Entry, Fault, looks_like_image
from components.ingest.fingerprints import Fingerprints
from dermaflow.errors import InputError
from dermaflow.params import DataParams
from dermaflow.storage import Bucket, StoredObject, StoredObjectError, split_uri


class BucketFiles:
    """All objects below a prefix."""

    concurrency = 32  # a read waits for the network, hardly for a core

    def __init__(self, params: DataParams) -> None:
        bucket, prefix = split_uri(params.source)
        self._source = params.source
        self._prefix = f"{prefix}/" if prefix else ""
        self._max_bytes = params.max_file_bytes
        self._bucket = Bucket(bucket, params.patience_seconds, self.concurrency)
        self.fingerprints = Fingerprints(f"{self._bucket.endpoint} {params.source}")

    def walk(self) -> Iterator[Entry | Fault]:
        """Every object; a key that ends in a slash stands for a folder.

        Raises
        ------
        InputError
            when there is none, or the store can not be asked.
        """
        empty = True
        for item in self._bucket.objects(self._prefix):
            empty = False
            uri = item.key[len(self._prefix) :]
            if not uri.endswith("/"):
                yield Entry(uri, item.size, f"{item.etag}-{item.size:x}@{item.modified:x}")
            elif looks_like_image(uri.rstrip("/")):
                yield Fault(uri, "not_a_file", "a key that ends in a slash stands for a folder")
        if empty:
            raise InputError(f"data.source: {self._source} holds no objects; correct the prefix")

    def read(self, entry: Entry) -> bytes:
        """The bytes of an object.

        Raises
        ------
        RejectedError
            reason "missing", "changed" or "checksum".
        InputError
            when access is denied, or the store does not answer for `data.patience_seconds`.
        """
        tag = entry.version.partition("@")[0].rpartition("-")[0]
        try:
            return self._bucket.read(StoredObject(self._prefix + entry.uri, entry.size, tag, 0))
        except StoredObjectError as error:
            raise RejectedError(error.reason, error.detail) from error

    def digests(self, entries: Iterable[Entry]) -> Iterator[str]:
        """Entity tag and size of each object."""
        return (entry.version.partition("@")[0] for entry in entries)
