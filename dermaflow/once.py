"""Objects that are made once and never written again, in a folder or in S3: of many writers of a name, one is first.

A folder decides by linking a file to its name once its bytes are on the disk, S3 by a conditional write (If-None-Match). In a
bucket with versioning the first version of an object counts: whoever may write may lay another over it, or a mark that it is
deleted, but can not take away the first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dermaflow.errors import InputError
from dermaflow.storage import S3, Bucket, split_uri

RIGHTS = (
    "s3:PutObject",
    "s3:GetObject",
    "s3:GetObjectVersion",
    "s3:ListBucketVersions",
)  # of who writes; of a reader, all but one
_ABANDONED = 3600.0  # seconds after which a temporary file is nobody's any more: writing an object takes milliseconds
_PATIENCE = 60.0  # seconds for which a store that does not answer is asked again
_READERS = 16  # objects that are fetched from S3 at once
_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds after an attempt that nobody's object came of
_READS = 4  # attempts at an object that does not fit its checksum
_Answer = TypeVar("_Answer")


class OnceStore(Protocol):
    """Where such objects lie. Their names are relative paths; a name's last part does not begin with a dot."""

    def names(self, folder: str = "") -> list[str]:
        """Names of the objects right in a folder, in order; none of a folder that is not there."""

    def read(self, names: Sequence[str]) -> Iterator[bytes]:
        """The bytes of these objects, in this order; b"" of one that is not there."""

    def create(self, name: str, data: bytes) -> bool:
        """Make an object, whole or not at all, unless there is one of this name; whether the writer's own is there now.

        No two writers may give the same bytes: by them each knows its own, where the store's answer was lost.
        """


def open_once(place: str, what: str) -> OnceStore:
    """The objects at a place: a folder, or s3://bucket/prefix.

    Parameters
    ----------
    what: what they are, as messages begin with it: the option or thing that named the place.
    """
    return _Objects(place, what) if place.startswith(S3) else _Files(Path(place), what)


class _Files:
    """Objects in a folder."""

    def __init__(self, folder: Path, what: str) -> None:
        self._folder = folder
        self._what = what

    def names(self, folder: str = "") -> list[str]:
        try:
            found = [path for path in (self._folder / folder).iterdir() if not path.name.startswith(".") and path.is_file()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self._what}: {self._folder / folder} can not be read: {error.strerror}") from error
        return sorted(path.relative_to(self._folder).as_posix() for path in found)

    def read(self, names: Sequence[str]) -> Iterator[bytes]:
        for name in names:
            try:
                yield (self._folder / name).read_bytes()
            except FileNotFoundError:
                yield b""
            except OSError as error:
                raise InputError(f"{self._what}: {self._folder / name} can not be read: {error.strerror}") from error

    def create(self, name: str, data: bytes) -> bool:
        target = self._folder / name
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            if not target.parent.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _sync(target.parent.parent)
            _remove_abandoned(target.parent)
            try:
                _write(temporary, data)
                os.link(temporary, target)
                _sync(target.parent)
            finally:
                temporary.unlink(missing_ok=True)
        except FileExistsError:
            return False
        except OSError as error:
            raise InputError(f"{self._what}: can not write {target}: {error.strerror}; nothing was written") from error
        return True


class _Objects:
    """Objects in S3: the first version of each."""

    def __init__(self, uri: str, what: str) -> None:
        name, prefix = split_uri(uri)
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket = _OnceBucket(name, what)
        self._versions: dict[str, str] = {}  # of the names that were listed

    def names(self, folder: str = "") -> list[str]:
        below = f"{self._prefix}{folder}/" if folder else self._prefix
        found = self._bucket.first_versions(below)
        self._versions |= {key.removeprefix(self._prefix): version for key, version in found.items()}
        return sorted(key.removeprefix(self._prefix) for key in found if "/" not in key.removeprefix(below))

    def read(self, names: Sequence[str]) -> Iterator[bytes]:
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(self._read_one, names)

    def create(self, name: str, data: bytes) -> bool:
        return self._bucket.create(self._prefix + name, data)

    def _read_one(self, name: str) -> bytes:
        key = self._prefix + name
        version = self._versions.get(name) or self._bucket.first_versions(key).get(key)
        return b"" if version is None else self._bucket.read_version(key, version)


class _OnceBucket(Bucket):
    """A bucket whose objects are made once: conditional writes, and reading of first versions."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(name, _PATIENCE, _READERS)
        self._what = what

    def create(self, key: str, data: bytes) -> bool:
        """Store bytes where no object is; whether they are what counts under the key now.

        An answer may be lost on its way: where the object is there already, it may be this writer's own.
        """
        for pause in _PAUSES:
            self._ask(key, lambda: self._put_once(key, data))
            versions = self.first_versions(key)
            if key in versions:
                return self.read_version(key, versions[key]) == data
            time.sleep(pause)  # another was in the making, and came to nothing
        raise InputError(f"{self._what}: s3://{self.name}/{key}: the store could not decide who writes it; try again")

    def first_versions(self, prefix: str) -> dict[str, str]:
        """The id of each object's first version by its key, whatever was laid over it since; of keys below a prefix."""
        found: dict[str, str] = {}
        position: dict[str, str] = {}
        while True:
            page = self._ask(
                prefix,
                lambda: self._client.list_object_versions(Bucket=self.name, Prefix=prefix, **position),  # noqa: B023
            )
            for item in page.get("Versions", ()):
                found[item["Key"]] = item["VersionId"]  # of a key the newest comes first
            if not page.get("IsTruncated"):
                return dict(sorted(found.items()))
            position = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page.get("NextVersionIdMarker", "")}

    def read_version(self, key: str, version: str) -> bytes:
        """The bytes of a version, checked against the checksum that it was stored with; b"" where it is gone."""
        detail = ""
        for _ in range(_READS):
            data, detail = self._ask(key, lambda: self._read_version_once(key, version))
            if not detail:
                return data
        raise InputError(f"{self._what}: s3://{self.name}/{key}: {detail}, {_READS} times; see to the store")

    def _ask(self, key: str, ask: Callable[[], _Answer]) -> _Answer:
        where = f"{self._what}: s3://{self.name}/{key}"
        try:
            return self._patiently(where, ask)
        except InputError as error:
            if _status(error.__cause__) == 403:
                raise InputError(
                    f"{where}: {self.endpoint} denies access; who writes there needs {', '.join(RIGHTS)}"
                ) from error
            raise

    def _put_once(self, key: str, data: bytes) -> None:
        from botocore.exceptions import ClientError

        try:
            self._client.put_object(Bucket=self.name, Key=key, Body=data, IfNoneMatch="*", ChecksumAlgorithm="SHA256")
        except ClientError as error:
            if _status(error) not in (409, 412):  # in the making | made
                raise

    def _read_version_once(self, key: str, version: str) -> tuple[bytes, str]:
        """The bytes, and what is wrong with them."""
        from botocore.exceptions import ClientError, FlexibleChecksumError

        try:
            answer = self._client.get_object(Bucket=self.name, Key=key, VersionId=version, ChecksumMode="ENABLED")
            data: bytes = answer["Body"].read()
        except FlexibleChecksumError as error:
            return b"", str(error)
        except ClientError as error:
            if _status(error) == 404:
                return b"", ""
            raise
        expected = answer["ContentLength"]
        return data, "" if len(data) == expected else f"{len(data)} of {expected} bytes came"


def _status(error: Any) -> int:
    """The HTTP status of a refusal by S3; 0 of any other error."""
    return int(getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)  # not to be written over by accident
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """What killed writers left: no object, and no part of one."""
    for path in folder.glob(".*.json.*"):
        with contextlib.suppress(FileNotFoundError):  # its writer, or another cleaner, was there first
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
