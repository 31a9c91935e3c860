"""Digests of files that were read before, so that an unchanged source is not read again to know that it is unchanged.

A file in the cache folder for each source: rows of 48 bytes, a 128-bit key over (uri, version) and a SHA-256, behind a
SHA-256 of all of it. It may be deleted, damaged or unwritable at any time: then files are read again, nothing else.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from components.ingest.entries import Entry
from dermaflow import places

RACY_SECONDS = 2.0  # a file changed this shortly before it was looked at may change again without its times telling
_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("digest", "V32")])
_SHA_BYTES = 32
_SPARE = 100_000  # rows, 5 MB, of files that were asked for once
_PREFIX = "sha256:"


class Fingerprints:
    """Known digests ("sha256:<hex>") of one source's files."""

    def __init__(self, root: str) -> None:
        name = hashlib.sha256(root.encode(errors="surrogateescape")).hexdigest()[:32]
        self._path = places.cache() / "fingerprints" / name
        self._set_rows(_read_rows(self._path))

    def known(self, entries: Iterable[Entry]) -> list[str | None]:
        """Digest of each entry's bytes, or None where they must be read."""
        keys = np.frombuffer(b"".join(map(_key, entries)), np.uint64).reshape(-1, 2)
        rows = np.searchsorted(self._high, keys[:, 0])
        inside = np.flatnonzero(rows < len(self._high))
        found = self._rows[rows[inside]]  # of files that share the first half of a key, only one is ever known
        same = (found["high"] == keys[inside, 0]) & (found["low"] == keys[inside, 1])
        self._used[rows[inside[same]]] = True
        digests: list[str | None] = [None] * len(keys)
        for place, digest in zip(inside[same].tolist(), found["digest"][same].tolist(), strict=True):
            digests[place] = _PREFIX + digest.hex()
        return digests

    def keep(self, found: Iterable[tuple[Entry, str]]) -> None:
        """Note digests for the next time; what was known before stays, until most of it is of files that nobody asks for."""
        packed = bytearray()
        for entry, digest in found:
            packed += _key(entry) + bytes.fromhex(digest.removeprefix(_PREFIX))
        new = np.frombuffer(packed, _ROW)
        stale = len(self._rows) > _SPARE + 4 * (len(new) + int(self._used.sum()))
        rows = np.concatenate([new, self._rows[self._used] if stale else self._rows])
        rows = rows[np.lexsort((rows["low"], rows["high"]))]  # stable: of two equal keys the new one comes first
        again = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
        rows = rows[np.append(True, ~again)] if again.any() else rows
        if not np.array_equal(rows, self._rows):
            self._set_rows(rows)
            _write_rows(self._path, rows)

    def _set_rows(self, rows: npt.NDArray[np.void]) -> None:
        self._rows = rows
        self._high = np.ascontiguousarray(rows["high"])
        self._used = np.zeros(len(rows), bool)


def _key(entry: Entry) -> bytes:
    return hashlib.blake2b(f"{entry.uri}\0{entry.version}".encode(), digest_size=16).digest()


def _read_rows(path: Path) -> npt.NDArray[np.void]:
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    seal, rows = data[:_SHA_BYTES], data[_SHA_BYTES:]
    whole = hashlib.sha256(rows).digest() == seal and len(rows) % _ROW.itemsize == 0
    return np.frombuffer(rows if whole else b"", _ROW)


def _write_rows(path: Path, rows: npt.NDArray[np.void]) -> None:
    with suppress(OSError):  # a read-only or full cache costs time, not correctness
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(hashlib.sha256(rows.data).digest())
                file.write(rows.data)
                file.flush()
                os.replace(file.name, path)
            except OSError:
                Path(file.name).unlink()
                raise
