"""The ledger of a registry: what was registered, decided and moved, in entries that are added and never changed.

Each entry is one object, `00000001.json` and so on, in a folder or below `s3://bucket/prefix`. It carries the digest of the
entry before it and its own, so that what was edited, taken out or put elsewhere shows; what was cut off at the end shows
against a head that was kept elsewhere (`write_anchor`). An entry is made only where there is none of its number: of
several writers one is first, and the others read what is new and try again.

In a bucket with versioning the first version of an object counts: whoever may write may lay another over it, or a mark
that it is deleted, but can not take away the first (docs/registry.md).
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from dermaflow.artifacts import json_digest, read_json, write_json
from dermaflow.errors import DermaflowError, InputError
from dermaflow.storage import S3, Bucket, split_uri

Kind = Literal["registration", "evaluation", "decision", "approval", "waiver", "promotion", "rollback", "repair"]
KINDS: tuple[str, ...] = ("registration", "evaluation", "decision", "approval", "waiver", "promotion", "rollback", "repair")
FORMAT = 1
NOTHING = "sha256:" + 64 * "0"  # stands for the digest of the entry before the first
FOLDER = "ledger"  # beside the database of an embedded registry
PLACE = "DERMAFLOW_LEDGER"  # variable that says where a server's ledger lies
_SQLITE = "sqlite:///"
_NAME = re.compile(r"(\d{8})\.json")
_FIELDS = {"format": int, "number": int, "previous": str, "kind": str, "at": str, "actor": str, "body": dict, "nonce": str}
_ABANDONED = 3600.0  # seconds after which a temporary file is nobody's any more: writing an entry takes milliseconds
_PATIENCE = 60.0  # seconds for which a store that does not answer is asked again
_READERS = 16  # entries that are fetched from S3 at once
_LONGEST_PAUSE = 0.2  # seconds between two attempts at the next number
_READS = 4  # attempts at an object that does not fit its checksum


class LedgerError(DermaflowError):
    """The ledger is not the chain that it was: says which entry, and what to do."""


class HeadMovedError(DermaflowError):
    """Somebody wrote to the ledger first, and what was asked for does not hold any more: says what was written."""


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes
    ----------
    previous: digest of the entry before; NOTHING of the first.
    at: when it was written, by the writer's clock, in UTC.
    actor: the account that wrote it.
    body: what happened, by kind (docs/registry.md).
    nonce: makes equal entries of two writers differ, so that each knows its own.
    digest: of all the rest.
    """

    number: int
    previous: str
    kind: str
    at: str
    actor: str
    body: dict[str, Any]
    nonce: str
    digest: str
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """The entry as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Head:
    """The last entry's number and digest; 0 and NOTHING of a ledger without entries. It stands for all entries before it."""

    number: int
    digest: str


EMPTY = Head(0, NOTHING)


@dataclass(frozen=True)
class Fault:
    """What is wrong with the chain at an entry's number: a name (missing, damaged, edited, moved or broken) and a sentence."""

    number: int
    name: str
    detail: str


class Place(Protocol):
    """Where entries lie."""

    def numbers(self) -> list[int]:
        """Numbers of the entries that are there, ascending."""

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """The bytes of these entries, in this order; b"" of one that is not there any more."""

    def create(self, number: int, data: bytes) -> bool:
        """Write an entry, whole or not at all, unless one of this number is there; whether the writer's own is there now."""


class Ledger:
    """A ledger at a place; entries that were read are kept, since they do not change."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._store: Place = _Objects(place) if place.startswith(S3) else _Files(Path(place))
        self._sound: list[Entry] = []

    def entries(self) -> list[Entry]:
        """Every entry, in order.

        Raises
        ------
        LedgerError
            when the chain does not hold: nothing may be rested on it, and nothing added.
        """
        entries, faults = self._look(self._sound)
        if faults:
            raise LedgerError(
                f"{self.place}: the ledger does not hold at entry {faults[0].number}: {faults[0].detail}. Nothing was written. "
                "Look with: dermaflow verify; bring the entries back from a copy of the ledger"
            )
        self._sound = entries
        return list(entries)

    def look(self) -> tuple[list[Entry], list[Fault]]:
        """Read everything anew: the entries that can be read, and every fault of the chain."""
        return self._look([])

    def copy_to(self, folder: Path) -> None:
        """Lay every entry into a folder, byte for byte, whether the chain holds or not."""
        numbers = self._store.numbers()
        for number, data in zip(numbers, self._store.read(numbers), strict=True):
            (folder / _name_of(number)).write_bytes(data)

    def head(self) -> Head:
        """The head of the chain; raises LedgerError where it does not hold."""
        return head_of(self.entries())

    def append(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        *,
        actor: str | None = None,
        only_after: int | None = None,
        unless: Callable[[Sequence[Entry]], Entry | None] | None = None,
    ) -> Entry:
        """Add an entry behind the last; where another writer is first, look at what it wrote and try again.

        Parameters
        ----------
        body: values of JSON.
        actor: the account that acts; by default that of this process (`account`).
        only_after: the number of the entry that has to be the last one still.
        unless: is shown all entries before each attempt; an entry that it returns stands for the new one, which is then
            not written. It may raise.

        Raises
        ------
        HeadMovedError
            when another entry came after `only_after`.
        LedgerError
            when the chain does not hold.
        """
        told, by, nonce = json.loads(json.dumps(body, allow_nan=False)), actor or account(), secrets.token_hex(8)
        pause = 0.001
        while True:
            entries = self.entries()
            found = unless(entries) if unless else None
            if found is not None:
                return found
            _refuse_moved(self.place, entries, only_after)
            entry = _entry(head_of(entries), kind, told, by, nonce)
            if self._store.create(entry.number, _bytes(entry)):
                self._sound = [*entries, entry]
                return entry
            time.sleep(pause * (0.5 + secrets.randbelow(512) / 1024))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _look(self, known: Sequence[Entry]) -> tuple[list[Entry], list[Fault]]:
        """Entries behind those that are known, and their faults."""
        numbers = self._store.numbers()
        if _gaps(numbers):  # others may write while names are listed: what was there by the last name shows in a second list
            last = numbers[-1]
            numbers = [number for number in self._store.numbers() if number <= last]
        fresh = [number for number in numbers if number > len(known)]
        entries, faults = list(known), _gaps([*numbers, *([len(known)] if known else [])])
        for number, data in zip(fresh, self._store.read(fresh), strict=True):
            entry, fault = _read_entry(number, data)
            if entry is not None:
                faults += _unchained(entry, entries[-1] if entries else None)
                entries.append(entry)
            faults += [fault] if fault else []
        return entries, sorted(faults, key=lambda fault: fault.number)


def head_of(entries: Sequence[Entry]) -> Head:
    """The head that some entries have."""
    return Head(entries[-1].number, entries[-1].digest) if entries else EMPTY


def account() -> str:
    """Who acts: the account on the MLflow server where one is named, otherwise the one on this machine."""
    name = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if name:
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return f"uid {os.getuid()}"


def ledger_of(tracking_uri: str) -> Ledger:
    """The ledger of a registry: one registry has one.

    Of an embedded registry it is the folder beside its database. Of a server it lies where DERMAFLOW_LEDGER says, a folder or
    s3://bucket/prefix: like the server's address it is a fact of the place where this runs, and the same for all who write.

    Raises
    ------
    InputError
        when the registry is a server and nothing says where its ledger lies.
    """
    if tracking_uri.startswith(_SQLITE):
        return Ledger(str(Path(tracking_uri.removeprefix(_SQLITE)).resolve().parent / FOLDER))
    place = os.environ.get(PLACE)
    if not place:
        raise InputError(
            f"{PLACE}: {tracking_uri} is a server, and nothing says where its ledger lies; set it to the one place that all "
            "who write to this registry use: s3://bucket/prefix, or a folder that they share"
        )
    return Ledger(place)


def write_anchor(path: Path, ledger: Ledger) -> Head:
    """Keep the head in a file, to be laid where whoever may write the ledger may not write: a git tag, another account.

    Raises
    ------
    LedgerError
        when the chain does not hold, or not behind the anchor that the file holds already.
    """
    entries = ledger.entries()
    if path.exists():
        unheld = unanchored(entries, read_anchor(path))
        if unheld:
            raise LedgerError(f"{path} stays as it is: {unheld}")
    head = head_of(entries)
    write_json(path, {"format": FORMAT, "number": head.number, "digest": head.digest, "at": _now()})
    return head


def read_anchor(path: Path) -> Head:
    """The head that a file keeps; raises InputError when it is no anchor."""
    value = read_json(path)
    told = (value.get("format"), value.get("number"), value.get("digest")) if isinstance(value, dict) else ()
    if not told or told[0] != FORMAT or not isinstance(told[1], int) or not isinstance(told[2], str):
        raise InputError(f"{path} is not an anchor of format {FORMAT}; make one with: dermaflow anchor {path}")
    return Head(told[1], told[2])


def unanchored(entries: Sequence[Entry], anchor: Head) -> str | None:
    """What speaks against these entries by a head that was kept; None where they go on from it."""
    if anchor == EMPTY:
        return None
    found = next((entry for entry in entries if entry.number == anchor.number), None)
    if found is None:
        return (
            f"the anchor knows entry {anchor.number}, but the ledger ends with {head_of(entries).number}: its end was cut off"
        )
    if found.digest != anchor.digest:
        return f"entry {anchor.number} is another than when the anchor was made: the ledger was written anew"
    return None


def _refuse_moved(place: str, entries: Sequence[Entry], only_after: int | None) -> None:
    head = head_of(entries).number
    if only_after is not None and head != only_after:
        raise HeadMovedError(
            f"{place}: entry {head} ({entries[-1].kind if entries else 'none'}) is the last one now, not {only_after}: "
            "somebody wrote first. Nothing was written; look at what is new and start again"
        )


def _entry(head: Head, kind: str, body: dict[str, Any], actor: str, nonce: str) -> Entry:
    rest: dict[str, Any] = {
        "format": FORMAT,
        "number": head.number + 1,
        "previous": head.digest,
        "kind": kind,
        "at": _now(),
        "actor": actor,
        "body": body,
        "nonce": nonce,
    }
    return Entry(**rest, digest=json_digest(rest))


def _name_of(number: int) -> str:
    return f"{number:08d}.json"


def _bytes(entry: Entry) -> bytes:
    return (json.dumps(entry.to_dict(), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def _read_entry(number: int, data: bytes) -> tuple[Entry | None, Fault | None]:
    """An entry, if it can be read, and what is wrong with it by itself."""
    try:
        value = json.loads(data)
    except ValueError:
        return None, Fault(number, "damaged", f"entry {number} is not JSON")
    if not isinstance(value, dict) or value.keys() != {*_FIELDS, "digest"}:
        return None, Fault(number, "damaged", f"entry {number} has not the fields of an entry")
    if not all(type(value[name]) is kind for name, kind in _FIELDS.items()):
        return None, Fault(number, "damaged", f"entry {number} has a field of the wrong type")
    if value["format"] > FORMAT:
        raise InputError(f"entry {number} of the ledger has format {value['format']}; this Dermaflow reads up to {FORMAT}")
    entry = Entry(**value)
    if json_digest({name: value[name] for name in _FIELDS}) != entry.digest:
        return entry, Fault(number, "edited", f"entry {number} does not fit its digest: it was edited")
    if entry.number != number:
        return entry, Fault(number, "moved", f"in the place of entry {number} lies entry {entry.number}: they were reordered")
    return entry, None


def _unchained(entry: Entry, before: Entry | None) -> list[Fault]:
    if (before.number if before else 0) + 1 != entry.number:  # told as missing or moved
        return []
    if entry.previous == (before.digest if before else NOTHING):
        return []
    detail = f"entry {entry.number} does not follow the entry that lies before it: that one, or this one, was put there later"
    return [Fault(entry.number, "broken", detail)]


def _gaps(numbers: Sequence[int]) -> list[Fault]:
    there = set(numbers)
    absent = [number for number in range(1, max(there, default=0)) if number not in there]
    return [Fault(number, "missing", f"entry {number} is missing although later ones are there") for number in absent]


class _Files:
    """Entries in a folder: linked into place once their bytes are on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def numbers(self) -> list[int]:
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"ledger {self._folder} can not be read: {error.strerror}") from error
        return sorted(int(found[1]) for found in map(_NAME.fullmatch, names) if found)

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        for number in numbers:
            try:
                yield self._path(number).read_bytes()
            except FileNotFoundError:
                yield b""
            except OSError as error:
                raise InputError(f"{self._path(number)} can not be read: {error.strerror}") from error

    def create(self, number: int, data: bytes) -> bool:
        target = self._path(number)
        temporary = self._folder / f".{target.name}.{secrets.token_hex(8)}"
        try:
            if not self._folder.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                _sync(self._folder.parent)
            self._remove_abandoned()
            try:
                self._write(temporary, data)
                os.link(temporary, target)
                _sync(self._folder)
            finally:
                temporary.unlink(missing_ok=True)
        except FileExistsError:
            return False
        except OSError as error:
            raise InputError(
                f"ledger: can not write {target}: {error.strerror}; nothing is done that the ledger does not hold"
            ) from error
        return True

    def _write(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)  # not to be written over by accident
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _remove_abandoned(self) -> None:
        """What killed writers left: no entry, and no part of one."""
        for path in self._folder.glob(".????????.json.*"):
            with contextlib.suppress(FileNotFoundError):  # its writer, or another cleaner, was there first
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()

    def _path(self, number: int) -> Path:
        return self._folder / _name_of(number)


class _Objects:
    """Entries in S3: the first version of each object."""

    def __init__(self, uri: str) -> None:
        name, prefix = split_uri(uri)
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket = LedgerBucket(name, _PATIENCE, _READERS)
        self._versions: dict[int, str] = {}

    def numbers(self) -> list[int]:
        found = self._bucket.first_versions(self._prefix)
        names = {key: _NAME.fullmatch(key.removeprefix(self._prefix)) for key in found}
        self._versions = {int(name[1]): found[key] for key, name in names.items() if name}
        return sorted(self._versions)

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(lambda number: self._bucket.read_version(self._key(number), self._versions[number]), numbers)

    def create(self, number: int, data: bytes) -> bool:
        return self._bucket.create(self._key(number), data)

    def _key(self, number: int) -> str:
        return self._prefix + _name_of(number)


class LedgerBucket(Bucket):
    """A bucket whose objects are made once: conditional writes, and reading of first versions."""

    def create(self, key: str, data: bytes) -> bool:
        """Store bytes where no object is; whether they are what counts under the key now.

        An answer may be lost on its way: where the object is there already, it may be this writer's own.
        """
        self._patiently(f"s3://{self.name}/{key}", lambda: self._put_once(key, data))
        versions = self.first_versions(key)
        return key in versions and self.read_version(key, versions[key]) == data

    def first_versions(self, prefix: str) -> dict[str, str]:
        """The id of each object's first version by its key, whatever was laid over it since; of keys below a prefix."""
        found: dict[str, str] = {}
        position: dict[str, str] = {}
        while True:
            page = self._patiently(
                f"s3://{self.name}/{prefix}",
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
            data, detail = self._patiently(f"s3://{self.name}/{key}", lambda: self._read_version_once(key, version))
            if not detail:
                return data
        raise InputError(f"s3://{self.name}/{key}: {detail}, {_READS} times; see to the store")

    def _put_once(self, key: str, data: bytes) -> None:
        from botocore.exceptions import ClientError

        try:
            self._client.put_object(Bucket=self.name, Key=key, Body=data, IfNoneMatch="*", ChecksumAlgorithm="SHA256")
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") not in (409, 412):  # in the making | made
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
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                return b"", ""
            raise
        expected = answer["ContentLength"]
        return data, "" if len(data) == expected else f"{len(data)} of {expected} bytes came"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
