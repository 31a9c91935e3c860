"""Training state that outlives the process: written whole or not at all, in a folder or in S3, and read back bit for bit.

A checkpoint is never taken for a model: it lies elsewhere, under the digest of what is trained from what, and is removed
when the model is written.
"""

from __future__ import annotations

import io
import json
import os
import signal
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dermaflow.errors import InterruptedWorkError
from dermaflow.progress import tell
from dermaflow.storage import S3, Bucket, split_uri

Arrays = Mapping[str, npt.NDArray[Any]]
_TOLD = "told"  # the array that holds everything but arrays, as JSON
_PATIENCE = 300.0  # seconds for which a store that does not answer is asked


class _Place(Protocol):
    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, data: bytes) -> None: ...
    def remove(self, name: str) -> None: ...


@dataclass(frozen=True)
class _Folder:
    path: Path

    def read(self, name: str) -> bytes | None:
        path = self.path / name
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, data: bytes) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.path, suffix=".tmp", delete=False) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self.path / name)

    def remove(self, name: str) -> None:
        for path in (self.path / name, *self.path.glob("*.tmp")):
            path.unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


@dataclass(frozen=True)
class _Objects:
    bucket: Bucket
    prefix: str

    def read(self, name: str) -> bytes | None:
        return self.bucket.get(self.prefix + name)

    def write(self, name: str, data: bytes) -> None:
        self.bucket.put(self.prefix + name, data)

    def remove(self, name: str) -> None:
        self.bucket.delete(self.prefix + name)


@dataclass(frozen=True)
class Checkpoint:
    """What was kept: arrays by name, and the rest as JSON."""

    arrays: Arrays
    told: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training, under a place and a key.

    Parameters
    ----------
    place: a folder, or `s3://bucket/prefix`.
    key: what is trained from what.
    seconds: between two checkpoints within an epoch.
    """

    def __init__(self, place: Path | str, key: str, seconds: float) -> None:
        self._place = _place(place, key)
        self._seconds = seconds
        self._kept_at = time.monotonic()

    def due(self) -> bool:
        """Whether so much time has passed since the last one that another is due, or the process was asked to end."""
        return stop_asked() or time.monotonic() - self._kept_at >= self._seconds

    def read(self, name: str) -> Checkpoint | None:
        """The checkpoint of a name; None where there is none, or, with a warning, where it can not be read."""
        data = self._place.read(name + ".npz")
        if data is None:
            return None
        try:
            with np.load(io.BytesIO(data)) as kept:
                arrays = {key: kept[key] for key in kept.files}
            return Checkpoint(arrays, json.loads(str(arrays.pop(_TOLD))))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            tell("warning", message=f"the checkpoint {name} is damaged ({error}); this stage of training starts anew")
            return None

    def write(self, name: str, arrays: Arrays, told: Mapping[str, Any]) -> None:
        """Keep a checkpoint in place of the one of this name: all of it, or the older one stays."""
        buffer = io.BytesIO()
        np.savez(buffer, **{_TOLD: np.array(json.dumps(told)), **arrays})  # type: ignore[arg-type]
        self._place.write(name + ".npz", buffer.getvalue())
        self._kept_at = time.monotonic()

    def remove(self, *names: str) -> None:
        """Remove what was kept under the names."""
        for name in names:
            self._place.remove(name + ".npz")


def _place(place: Path | str, key: str) -> _Place:
    if isinstance(place, str) and place.startswith(S3):
        bucket, prefix = split_uri(place)
        return _Objects(Bucket(bucket, _PATIENCE, 1), "/".join(part for part in (prefix, key) if part) + "/")
    return _Folder(Path(place) / key)


_asked = threading.Event()


def stop_asked() -> bool:
    """Whether the process was asked to end by SIGTERM, within `ends_when_asked`."""
    return _asked.is_set()


def end_if_asked(text: str) -> None:
    """Raise InterruptedWorkError when the process was asked to end; what was done must be kept by now."""
    if stop_asked():
        raise InterruptedWorkError(f"{text}: ended by SIGTERM; what was done is kept, and the next start goes on from there")


@contextmanager
def ends_when_asked() -> Iterator[None]:
    """Within the block SIGTERM does not end the process at once: the work looks at `stop_asked` and keeps its state first."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    _asked.clear()
    before = signal.signal(signal.SIGTERM, lambda *_: _asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
