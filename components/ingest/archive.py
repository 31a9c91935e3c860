"""The files in a zip archive, read in place: nothing is unpacked, and no entry can expand without bound.

The central directory is read by zipfile, once; then each image by its place in the file, from any thread, without a
lock. 20 bytes of place and a name are kept for each entry, where zipfile would keep 600.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from components.ingest.decode import RejectedError
from components.ingest.entries import Entry, Fault, find_text, looks_like_image, plain
from dermaflow.errors import InputError

MAX_EXPANSION = 100  # times; a JPEG or PNG hardly shrinks in a zip, a mask of HAM10000 by less than 5
_BOMB_BYTES = 1_000_000  # smaller entries may expand as they like: they hurt nobody
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field; APPNOTE.TXT 4.3.7
_PLACE = np.dtype([("offset", "<i8"), ("packed", "<i8"), ("size", "<i8"), ("crc", "<u4"), ("method", "<u2")])
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Archive:
    """A zip archive at `path`; `uri` and `version` are those of the archive itself, which its entries' begin with."""

    def __init__(self, path: Path, uri: str, version: str) -> None:
        self.path = path
        self.uri = uri
        self.version = version
        self._file: BinaryIO | None = None
        self._names = np.empty(0, np.bytes_)
        self._places = np.empty(0, _PLACE)

    def walk(self) -> Iterator[Entry | Fault]:
        """All entries, in the order of the archive.

        Raises
        ------
        InputError
            when the file is no whole zip archive.
        """
        infos = self._directory()
        shared, length = _sharing_bytes(infos), self.path.stat().st_size
        names: list[str] = []
        rows: list[tuple[int, ...]] = []
        for info in infos:
            uri = f"{self.uri}/{info.orig_filename}"
            fault = next(_faults(info, length, shared=info.header_offset in shared), None)
            if fault:
                yield Fault(uri, *fault)
            elif not _is_folder(info):
                names.append(info.orig_filename)
                rows.append((info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type))
                yield Entry(uri, info.file_size, f"{self.version}/{info.CRC:08x}-{info.file_size:x}-{info.header_offset:x}")
        self._keep_places(names, rows)

    def read(self, entry: Entry) -> bytes:
        """The bytes of an entry, checked against its CRC-32.

        Raises
        ------
        RejectedError
            reason "crc", "bomb" or "unreadable".
        """
        row = find_text(self._names, entry.uri[len(self.uri) + 1 :])
        if row is None:
            raise RejectedError("missing", f"{plain(entry.uri)} is not in the archive any more")
        place = self._places[row]
        data = self._unpack(place)
        if len(data) != place["size"] or zlib.crc32(data) != place["crc"]:
            raise RejectedError(
                "crc", "the CRC-32 in the archive is another one: it was damaged after it was made; get it again"
            )
        return data

    def _directory(self) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.infolist()
        except (zipfile.BadZipFile, UnicodeDecodeError, struct.error, NotImplementedError, EOFError, ValueError) as error:
            raise InputError(f"{self.path} is not a whole zip archive ({error}); copy or download it again") from error
        except OSError as error:
            raise InputError(f"{self.path} can not be read: {error.strerror}; check its permissions") from error

    def _keep_places(self, names: list[str], rows: list[tuple[int, ...]]) -> None:
        array = np.asarray([name.encode(errors="surrogateescape") for name in names], np.bytes_)
        order = np.argsort(array, kind="stable")
        self._names, self._places = array[order], np.array(rows, _PLACE)[order]
        self._file = self.path.open("rb")

    def _unpack(self, place: np.void) -> bytes:
        assert self._file is not None
        file, offset, packed, size = self._file.fileno(), int(place["offset"]), int(place["packed"]), int(place["size"])
        header = os.pread(file, _LOCAL_HEADER.size, offset)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise RejectedError("unreadable", "the archive has no entry where its directory says; get it again")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        data = os.pread(file, packed, offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)
        if place["method"] == zipfile.ZIP_STORED:
            return data
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            unpacked = inflater.decompress(data, size + 1)  # one more than promised shows that there is more
        except zlib.error as error:
            raise RejectedError("crc", f"the archive's data is damaged ({error}); get it again") from error
        if len(unpacked) > size:
            raise RejectedError("bomb", f"the entry expands to more than the {size} bytes that the archive's directory says")
        return unpacked


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.orig_filename.endswith("/")


def _faults(info: zipfile.ZipInfo, length: int, *, shared: bool) -> Iterator[tuple[str, str]]:
    """Reasons and details why an entry may not be read; names that lead outside are judged with those of other places."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    stored = info.compress_type == zipfile.ZIP_STORED
    fits = info.compress_size == info.file_size if stored else info.compress_size <= 2 * info.file_size + 1000
    if kind == stat.S_IFLNK:
        yield "outside", "the entry is a link; links in archives are not followed"
    if _is_folder(info):
        if looks_like_image(info.orig_filename.rstrip("/")):
            yield "not_a_file", "a folder, not a file"
        return
    if kind not in (0, stat.S_IFREG):
        yield "not_a_file", "neither a file nor a folder"
    if info.flag_bits & 0x1:
        yield "encrypted", "the entry is encrypted; store it without a password"
    if shared:
        yield "bomb", "the entry shares its bytes with another one"
    if info.compress_type not in _METHODS:
        yield "unsupported", f"compression method {info.compress_type}; allowed: stored (0) and deflate (8)"
    if info.file_size > max(_BOMB_BYTES, MAX_EXPANSION * info.compress_size):
        yield "bomb", f"{info.compress_size} bytes that would expand to {info.file_size}; allowed: {MAX_EXPANSION} times"
    if not fits or info.header_offset + info.compress_size > length:
        yield "unreadable", f"its {info.compress_size} packed bytes can not hold {info.file_size}; get the archive again"


def _sharing_bytes(infos: list[zipfile.ZipInfo]) -> set[int]:
    """Header offsets of entries that overlap the one before: so a small archive can expand without end (D. Fifield, 2019)."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    return {
        info.header_offset
        for before, info in pairwise(ordered)
        if info.header_offset < before.header_offset + _LOCAL_HEADER.size + before.compress_size
    }
