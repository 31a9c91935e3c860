"""The ledger of a registry: what was registered, decided and moved, in entries that are added and never changed.

Each entry is one object, `00000001.json` and so on, in a folder or below `s3://bucket/prefix`. It carries the digest of the
entry before it and its own, so that what was edited, taken out or put elsewhere shows; what was cut off at the end shows
against a head that was kept elsewhere (`write_anchor`). An entry is made only where there is none of its number: of
several writers one is first, and the others read what is new and try again.

How entries are made once, and which version counts in a bucket: dermaflow/once.py and docs/registry.md.
"""

from __future__ import annotations

import datetime
import getpass
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dermaflow.artifacts import json_digest, read_json, write_json
from dermaflow.errors import DermaflowError, InputError
from dermaflow.once import open_once

Kind = Literal["registration", "evaluation", "decision", "approval", "waiver", "promotion", "rollback", "repair"]
KINDS: tuple[str, ...] = ("registration", "evaluation", "decision", "approval", "waiver", "promotion", "rollback", "repair")
FORMAT = 1
NOTHING = "sha256:" + 64 * "0"  # stands for the digest of the entry before the first
FOLDER = "ledger"  # beside the database of an embedded registry
PLACE = "DERMAFLOW_LEDGER"  # variable that says where a server's ledger lies
_SQLITE = "sqlite:///"
_NAME = re.compile(r"(\d{8})\.json")
_FIELDS = {"format": int, "number": int, "previous": str, "kind": str, "at": str, "actor": str, "body": dict, "nonce": str}
_LONGEST_PAUSE = 0.2  # seconds between two attempts at the next number


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


class Ledger:
    """A ledger at a place; entries that were read are kept, since they do not change."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._store = open_once(place, "ledger")
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
        names = [_name_of(number) for number in self._numbers()]
        for name, data in zip(names, self._store.read(names), strict=True):
            (folder / name).write_bytes(data)

    def head(self) -> Head:
        """The head of the chain; raises LedgerError where it does not hold."""
        return head_of(self.entries())

    def append(
        self,
        kind: Kind,
        body: Mapping[str, Any],
        *,
        actor: str | None = None,
        unless: Callable[[Sequence[Entry]], Entry | None] | None = None,
    ) -> Entry:
        """Add an entry behind the last; where another writer is first, look at what it wrote and try again.

        Parameters
        ----------
        body: values of JSON.
        actor: the account that acts; by default that of this process (`account`).
        unless: is shown all entries before each attempt; an entry that it returns stands for the new one, which is then
            not written. It may raise.

        Raises
        ------
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
            entry = _entry(head_of(entries), kind, told, by, nonce)
            if self._store.create(_name_of(entry.number), _bytes(entry)):
                self._sound = [*entries, entry]
                return entry
            time.sleep(pause * (0.5 + secrets.randbelow(512) / 1024))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _look(self, known: Sequence[Entry]) -> tuple[list[Entry], list[Fault]]:
        """Entries behind those that are known, and their faults."""
        numbers = self._numbers()
        if _gaps(numbers):  # others may write while names are listed: what was there by the last name shows in a second list
            last = numbers[-1]
            numbers = [number for number in self._numbers() if number <= last]
        fresh = [number for number in numbers if number > len(known)]
        entries, faults = list(known), _gaps([*numbers, *([len(known)] if known else [])])
        for number, data in zip(fresh, self._store.read([_name_of(number) for number in fresh]), strict=True):
            entry, fault = _read_entry(number, data)
            if entry is not None:
                faults += _unchained(entry, entries[-1] if entries else None)
                entries.append(entry)
            faults += [fault] if fault else []
        return entries, sorted(faults, key=lambda fault: fault.number)

    def _numbers(self) -> list[int]:
        return sorted(int(found[1]) for found in map(_NAME.fullmatch, self._store.names()) if found)


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
