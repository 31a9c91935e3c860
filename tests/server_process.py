"""Servers of tests that are processes of their own: started, waited for until they answer, and ended whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import requests


@contextmanager
def server_process(
    command: Sequence[str], log: Path, answers: Callable[[], bool], within: float, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """A server, in the folder of its log, from when it answers until the end of the block, where its group is killed.

    Parameters
    ----------
    within: seconds; one that ends or does not answer so soon fails the test with its last words.
    environment: beside ours.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=log.parent, stdout=file, stderr=file, start_new_session=True, env={**os.environ, **(environment or {})}
        )
    try:
        deadline = time.monotonic() + within
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{Path(command[0]).name} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.3)
        yield
    finally:
        with suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_well(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether an address answers with 200."""
    try:
        return requests.get(url, headers=headers, timeout=5).status_code == 200
    except requests.RequestException:
        return False
