"""Claims: of many that want to start the same run, one may. A conditional create decides, in a folder or in S3.

A claim's attempts are numbered: `<key>/0001.claimed.json`, and beside it `0001.started.json` once its run was handed over.
Each file is created if it is not there, and never written again, so that no lock is held and nothing waits for a process
that died: an attempt that was not started within `retry_after` is followed by the next one, which again one process gets.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from dermaflow.errors import InputError
from dermaflow.once import open_once

_CLAIMED, _STARTED = "claimed", "started"


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
        self._objects = open_once(place, "--claims")

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
        ours = self._create(key, attempt, _CLAIMED, {"by": f"{socket.gethostname()}/{os.getpid()}"})
        return self._read(key, attempt), ours

    def started(self, claim: Claim, run_id: str) -> bool:
        """Tell which run a claim has started; False when a run was told before, which stays."""
        return self._create(claim.key, claim.attempt, _STARTED, {"run_id": run_id})

    def current(self, key: str) -> Claim | None:
        """The newest attempt at a key, or None."""
        attempts = [int(name.split("/")[-1].split(".")[0]) for name in self._objects.names(key) if _CLAIMED in name]
        return self._read(key, max(attempts)) if attempts else None

    def _create(self, key: str, attempt: int, state: str, told: Mapping[str, str]) -> bool:
        unlike_others = {**told, "at": _now().isoformat(), "nonce": secrets.token_hex(8)}
        return self._objects.create(_name(key, attempt, state), json.dumps(unlike_others).encode())

    def _read(self, key: str, attempt: int) -> Claim:
        claimed, started = self._objects.read([_name(key, attempt, state) for state in (_CLAIMED, _STARTED)])
        if not claimed:
            raise InputError(f"{self.place}: claim {key} was removed while it was read; call again")
        told = json.loads(claimed)
        at = datetime.datetime.fromisoformat(told["at"])
        return Claim(key, attempt, at, told["by"], json.loads(started)["run_id"] if started else None)


def _name(key: str, attempt: int, state: str) -> str:
    return f"{key}/{attempt:04d}.{state}.json"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
