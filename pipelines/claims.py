"""Claims: of many that want to start the same run, one may. A conditional create decides, in a folder or in S3.

A claim's attempts are numbered: `<key>/0001.claimed.json`, and beside it `0001.started.json` once its run was handed over.
Each file is created if it is not there, and never written again, so that no lock is held and nothing waits for a process
that died: an attempt that was not started within `retry_after` is followed by the next one, which again one process gets.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dermaflow.errors import InputError
from dermaflow.storage import S3, split_uri

_CLAIMED, _STARTED = "claimed", "started"
_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds after each answer of S3 that two write the same object at once


class Place(Protocol):
    """Where claims lie."""

    def create(self, name: str, text: str) -> bool:
        """Write an object that is not there yet; False when it is. Whoever reads it sees all of it or nothing."""

    def read(self, name: str) -> str | None:
        """What an object says; None when it is not there."""

    def names(self, prefix: str) -> list[str]:
        """The objects whose names begin with a prefix, in order."""


@dataclass(frozen=True)
class Claim:
    """A claim as it stands: its attempt (from 1), when and by whom it was made, and the run that it started, if it did."""

    key: str
    attempt: int
    at: datetime.datetime
    by: str
    run_id: str | None


class Claims:
    """Claims at a place: a folder, or s3://bucket/prefix."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._objects: Place = _Bucket(place) if place.startswith(S3) else _Folder(Path(place))

    def take(self, key: str, retry_after: datetime.timedelta) -> tuple[Claim, bool]:
        """Claim a key.

        Returns
        -------
        The claim, and whether it is ours: True for one caller of many. Who gets False finds in it who was first.
        """
        current = self.current(key)
        if current is not None and (current.run_id or _now() - current.at < retry_after):
            return current, False
        attempt = current.attempt + 1 if current else 1
        made = {"at": _now().isoformat(), "by": f"{socket.gethostname()}/{os.getpid()}"}
        if self._objects.create(_name(key, attempt, _CLAIMED), json.dumps(made)):
            return self._read(key, attempt), True
        return self._read(key, attempt), False

    def started(self, claim: Claim, run_id: str) -> bool:
        """Tell which run a claim has started; False when a run was told before, which stays."""
        told = {"at": _now().isoformat(), "run_id": run_id}
        return self._objects.create(_name(claim.key, claim.attempt, _STARTED), json.dumps(told))

    def current(self, key: str) -> Claim | None:
        """The newest attempt at a key, or None."""
        attempts = [int(name.split("/")[-1].split(".")[0]) for name in self._objects.names(f"{key}/") if _CLAIMED in name]
        return self._read(key, max(attempts)) if attempts else None

    def _read(self, key: str, attempt: int) -> Claim:
        claimed = self._objects.read(_name(key, attempt, _CLAIMED))
        if claimed is None:
            raise InputError(f"{self.place}: claim {key} was removed while it was read; call again")
        started = self._objects.read(_name(key, attempt, _STARTED))
        told = json.loads(claimed)
        at = datetime.datetime.fromisoformat(told["at"])
        return Claim(key, attempt, at, told["by"], json.loads(started)["run_id"] if started else None)


class _Folder:
    """Claims in a folder: a file is written aside and linked to its name, which fails where the name is taken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, name: str, text: str) -> bool:
        target = self._folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=".", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                os.link(file.name, target)
        except FileExistsError:
            return False
        except OSError as error:
            raise InputError(f"--claims {self._folder}: can not be written: {error.strerror}") from error
        return True

    def read(self, name: str) -> str | None:
        try:
            return (self._folder / name).read_text()
        except FileNotFoundError:
            return None

    def names(self, prefix: str) -> list[str]:
        found = (self._folder / prefix).glob("[0-9]*.json")
        return sorted(path.relative_to(self._folder).as_posix() for path in found)


class _Bucket:
    """Claims in S3: an object is put under If-None-Match, which the store refuses where there is one."""

    def __init__(self, uri: str) -> None:
        import boto3

        self._uri = uri
        self._bucket, self._prefix = split_uri(uri)
        self._client = boto3.session.Session().client("s3")

    def create(self, name: str, text: str) -> bool:
        from botocore.exceptions import ClientError

        for pause in _PAUSES:
            try:
                with self._faults():
                    self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=text.encode(), IfNoneMatch="*")
            except ClientError as error:
                if _status(error) == 412:  # there is one
                    return False
                if _status(error) != 409:  # another is being written at this moment, and may come to nothing
                    raise
                time.sleep(pause)
            else:
                return True
        raise InputError(f"--claims {self._uri}: the store could not decide who writes {name}; call again")

    def read(self, name: str) -> str | None:
        from botocore.exceptions import ClientError

        try:
            with self._faults():
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
                return str(answer["Body"].read().decode())
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise

    def names(self, prefix: str) -> list[str]:
        with self._faults():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(prefix))
            keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return sorted(key.removeprefix(self._key("")) for key in keys)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _faults(self) -> Any:
        return _told(self._uri)


def _told(uri: str) -> Any:
    from contextlib import contextmanager

    from botocore.exceptions import BotoCoreError, ClientError

    @contextmanager
    def faults() -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if _status(error) in (409, 412) or code == "NoSuchKey":
                raise
            raise InputError(
                f"--claims {uri}: the store refuses ({code}); it needs s3:PutObject, s3:GetObject and s3:ListBucket there"
            ) from error
        except BotoCoreError as error:
            raise InputError(f"--claims {uri}: {str(error).splitlines()[0][:200]}; check AWS_ENDPOINT_URL") from error

    return faults()


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _name(key: str, attempt: int, state: str) -> str:
    return f"{key}/{attempt:04d}.{state}.json"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
