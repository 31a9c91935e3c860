"""How a step tells its progress and its errors: lines on stderr that a person can read and the runner can parse."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dermaflow.errors import DermaflowError

MARK = "::dermaflow "
# What the libraries of a step read when they are imported. TensorFlow uses oneDNN by itself only on processors with
# AVX512-VNNI or newer; with AVX2 alone, training is up to 2.6 times as fast with it (docs/design.md). Great Expectations and
# MLflow would tell their makers of each use: a hospital's data platform tells nobody.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "GX_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a line for each file of a model otherwise
}
_SECONDS_BETWEEN_LINES = 1.0
_last_told = {"at": 0.0}
_listeners: list[Callable[[dict[str, Any]], None]] = []


def tell(event: str, **values: Any) -> None:
    """Write one structured line, `::dermaflow {"event": ..., ...}`, or hand it to whoever is heard by `told_to`."""
    if _listeners:
        _listeners[-1]({"event": event, **values})
        return
    print(MARK + json.dumps({"event": event, **values}), file=sys.stderr, flush=True)


def progress(text: str, done: int, total: int) -> None:
    """Report that `done` of `total` are finished; at most one line a second, except for the last."""
    now = time.monotonic()
    if done >= total or now - _last_told["at"] >= _SECONDS_BETWEEN_LINES:
        _last_told["at"] = now
        tell("progress", text=text, done=done, total=total)


@contextmanager
def told_to(listener: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Within the block, what is told goes to `listener`: a command that works in its own process shows it to a person."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()


def parse(line: str) -> dict[str, Any] | None:
    """The event in a log line, or None when it is ordinary output."""
    start = line.find(MARK)
    if start < 0:
        return None
    try:
        event: dict[str, Any] = json.loads(line[start + len(MARK) :])
    except json.JSONDecodeError:
        return None
    return event


def set_environment() -> None:
    """Set ENVIRONMENT, as far as it is not set: before libraries are imported, and before there is a second thread.

    What one thread adds to the environment ends another that reads it by a segmentation fault now and then: the C library does
    not guard it.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Around a step's work: an error meant for people ends the process with one message and its exit code.

    A programmer's error passes through with its traceback. At the end the step tells how long its work took, without the
    start of its process, and its peak memory.
    """
    started = time.monotonic()
    set_environment()
    try:
        yield
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # Linux counts in KiB
        tell("worked", step=name, work_seconds=round(time.monotonic() - started, 2), peak_mib=peak_mib)
    except DermaflowError as error:
        tell("error", step=name, kind=type(error).__name__, message=str(error), exit_code=error.exit_code)
        print(f"error: {name}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
