"""The files of a local folder, and of the zip archives in it; nothing outside is read because a link says so.

Links: a link to a folder directly in the source's root is the operator's choice and is followed. Deeper links to folders,
and links to files, are followed only where they end inside the root, inside such a folder, or in a DVC cache (with
cache.type symlink every tracked file is such a link); all others are refused, "outside".
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from components.ingest.archive import Archive
from components.ingest.decode import Bytes, RejectedError
from components.ingest.entries import Entry, Fault, looks_like_image
from components.ingest.fingerprints import RACY_SECONDS, Fingerprints
from components.ingest.scratch import Scratch
from dermaflow.artifacts import bytes_digest, file_digest
from dermaflow.errors import InputError, shown

_DVC_CACHED = re.compile(r"/(files/md5|\.dvc/cache)/[0-9a-f]{2}/[0-9a-f]{30}\Z")
_PASSED_OVER = ("__MACOSX",)  # and everything hidden
_BATCH = 1024  # files in the pool at a time: a future each would outweigh what they read


class FolderFiles:
    """All files below a folder, or in a single zip archive."""

    concurrency = len(os.sched_getaffinity(0))

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._root = os.path.realpath(path if path.is_dir() else path.parent)
        self._only = None if path.is_dir() else path.name
        self._max_bytes = max_bytes
        self._allowed = [self._root]
        self._archives: dict[str, Archive] = {}
        self._scratch = Scratch()
        self.fingerprints = Fingerprints(os.path.realpath(path))

    def walk(self) -> Iterator[Entry | Fault]:
        """Every file that is not hidden; each folder is gone into once, however many links lead to it.

        Raises
        ------
        InputError
            when a folder can not be listed, or an archive is damaged.
        """
        self._allowed = [self._root]
        self._archives.clear()
        if self._only:
            yield from self._list_archive(self._only)
        else:
            yield from self._list_folder("", set())

    def read(self, entry: Entry) -> Bytes:
        """The bytes of a file, good until this thread reads again.

        Raises
        ------
        RejectedError
            reason "missing", "unreadable", "not_a_file", "outside", "too_large", or one of an archive's.
        """
        archive = self._archive_of(entry)
        if archive:
            return archive.read(entry)
        path = f"{self._root}/{entry.uri}"
        try:
            return self._read_file(path)
        except FileNotFoundError as error:
            raise RejectedError("missing", "the file went away while the source was read") from error
        except OSError as error:
            raise RejectedError("unreadable", error.strerror or type(error).__name__) from error

    def digests(self, entries: Iterable[Entry]) -> Iterator[str]:
        """Digests that follow the bytes of files, in their order; only what changed since the last time is read."""
        sums = {uri: self._archive_digest(archive) for uri, archive in self._archives.items()}
        read: list[tuple[Entry, str]] = []
        with ThreadPoolExecutor(self.concurrency) as pool:
            remaining = iter(entries)
            while batch := list(islice(remaining, _BATCH)):
                known = self._known_digests(batch, sums)
                unknown = [entry for entry, digest in zip(batch, known, strict=True) if digest is None]
                found = iter(list(pool.map(self._read_digest, unknown)))
                for entry, digest in zip(batch, known, strict=True):
                    told = digest or next(found)
                    if digest is None and told.startswith("sha256:"):
                        read.append((entry, told))
                    yield told
        self.fingerprints.keep(read)

    def _list_folder(self, prefix: str, seen: set[tuple[int, int]]) -> Iterator[Entry | Fault]:
        path = Path(self._root, prefix)
        try:
            status = path.stat()
            with os.scandir(path) as entries:
                folders = []
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in _PASSED_OVER:
                        continue
                    if entry.is_file(follow_symlinks=False) and not entry.name.lower().endswith(".zip"):  # nearly all
                        yield _entry(prefix + entry.name, entry.stat())
                    elif _is_folder(entry):
                        folders.append((entry.is_symlink(), entry.name))
                    else:
                        yield from self._list_file(entry, prefix)
        except OSError as error:
            raise InputError(f"data.source: {path} can not be listed: {error.strerror}; check its permissions") from error
        seen.add((status.st_dev, status.st_ino))
        for is_link, name in sorted(folders):
            yield from self._list_below(prefix + name, seen, is_link=is_link)

    def _list_below(self, uri: str, seen: set[tuple[int, int]], *, is_link: bool) -> Iterator[Entry | Fault]:
        path = f"{self._root}/{uri}"
        status = Path(path).stat()
        if is_link and "/" not in uri:
            self._allowed.append(os.path.realpath(path))
        if looks_like_image(uri):
            yield Fault(uri, "not_a_file", "a folder, not a file; rename it if it holds images")
        elif is_link and (target := self._leads_outside(path)):
            yield Fault(uri + "/", "outside", f"the linked folder is outside the source, at {shown(target)}")
        elif (status.st_dev, status.st_ino) in seen:
            yield Fault(uri + "/", "duplicate_file", "the link leads to a folder that is read already")
        else:
            yield from self._list_folder(uri + "/", seen)

    def _list_file(self, entry: os.DirEntry[str], prefix: str) -> Iterator[Entry | Fault]:
        uri = prefix + entry.name
        try:
            if entry.is_symlink() and (target := self._leads_outside(entry.path)):
                yield Fault(
                    uri, "outside", f"the file is a link to {shown(target)}, outside the source; put the file itself here"
                )
                return
            status = entry.stat()
        except OSError as error:
            yield Fault(uri, "missing", f"a link to {shown(str(Path(entry.path).readlink()))}: {error.strerror}")
            return
        if not stat.S_ISREG(status.st_mode):
            yield Fault(uri, "not_a_file", f"{_kind(status.st_mode)}, not a file")
        elif entry.name.lower().endswith(".zip"):
            yield from self._list_archive(uri)
        else:
            yield _entry(uri, status)

    def _list_archive(self, uri: str) -> Iterator[Entry | Fault]:
        path = Path(self._root, uri)
        self._archives[uri] = Archive(path, uri, _version(path.stat()))
        return self._archives[uri].walk()

    def _archive_of(self, entry: Entry) -> Archive | None:
        return next((archive for uri, archive in self._archives.items() if entry.uri.startswith(uri + "/")), None)

    def _leads_outside(self, path: str) -> str | None:
        """Where a link ends when it may not be followed; raises OSError when it ends nowhere."""
        target = os.path.realpath(path, strict=True)
        inside = any(target == folder or target.startswith(folder + "/") for folder in self._allowed)
        return None if inside or _DVC_CACHED.search(target) else target

    def _read_file(self, path: str) -> Bytes:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo must not be waited for
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            if target := self._leads_outside(path):
                raise RejectedError("outside", f"the file is now a link to {shown(target)}") from error
            descriptor = os.open(path, flags)
        try:
            size = _regular_size(descriptor)
            room, length = self._scratch.take(min(size, self._max_bytes) + 1).data, 0
            while (more := os.readv(descriptor, [room[length:]])) and (length := length + more) < size:
                pass  # a file system may give less than was asked for
            data: Bytes = room[:length]
            if length > size:  # it grows
                data = bytes(data) + os.read(descriptor, self._max_bytes + 1 - length)
        finally:
            os.close(descriptor)
        if len(data) > self._max_bytes:
            raise RejectedError("too_large", f"it grew to more than data.max_file_bytes, which is {self._max_bytes}")
        return data

    def _known_digests(self, entries: list[Entry], sums: dict[str, str]) -> list[str | None]:
        known = self.fingerprints.known(entries)
        if sums:
            for place, entry in enumerate(entries):
                if archive := self._archive_of(entry):
                    known[place] = sums[archive.uri] + entry.version.removeprefix(archive.version)
        return known

    def _read_digest(self, entry: Entry) -> str:
        try:
            return bytes_digest(self.read(entry))
        except RejectedError as rejected:
            return f"{rejected.reason} {entry.version}"

    def _archive_digest(self, archive: Archive) -> str:
        entry = Entry(archive.uri, 0, archive.version)
        (known,) = self.fingerprints.known([entry])
        if known is None:
            known = file_digest(archive.path)
            self.fingerprints.keep([(entry, known)])
        return known


def _regular_size(descriptor: int) -> int:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise RejectedError("not_a_file", "it is no file any more")
    return status.st_size


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entry(uri: str, status: os.stat_result) -> Entry:
    return Entry(uri, status.st_size, _version(status))


def _kind(mode: int) -> str:
    return {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(mode), "a device")


def _version(status: os.stat_result) -> str:
    """A file's token; ctime can not be set back, so that it changes with every write.

    A file changed just now might change again within the same tick of the clock: it gets a token that never comes back.
    """
    token = f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}-{status.st_ino:x}"
    now = time.time_ns()
    settled = max(status.st_mtime_ns, status.st_ctime_ns) < now - RACY_SECONDS * 1e9
    return token if settled else f"{token}-{now:x}"
