"""Ingest as a process that is disturbed: killed at a random moment, or cut off from its store; then started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermaflow.artifacts import changed_files
from dermaflow.dataset import Dataset
from dermaflow.progress import parse
from tests.s3_server import S3Server
from tests.workspace import make_workspace, sets


@dataclass(frozen=True)
class Ingest:
    """An ingest of a source in a working folder of its own.

    Attributes
    ----------
    workspace: the folder; state and dataset come to lie in it.
    settings: KEY=VALUE parameters.
    environment: further variables, such as a store's credentials.
    """

    workspace: Path
    settings: tuple[str, ...]
    environment: dict[str, str]

    @classmethod
    def of(cls, source: str, workspace: Path, *settings: str, **environment: str) -> Ingest:
        """Lay out the working folder."""
        return cls(make_workspace(workspace).path, (f"data.source={source}", *settings), environment)

    def start(self) -> subprocess.Popen[str]:
        """Start it; it runs in a process group of its own."""
        command = [sys.executable, "-u", "-m", "components.ingest", "--dataset", "dataset", *sets(*self.settings)]
        return subprocess.Popen(
            command,
            cwd=self.workspace,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **self.environment},
        )

    def finish(self, on_progress: Callable[[float], None] = lambda _: None) -> float:
        """Run it to its end, and return the seconds from its first progress on; `on_progress` is told the share done."""
        process, began, told = self.start(), 0.0, []
        for line in process.stderr or ():
            told.append(line)
            event = parse(line)
            if event and event["event"] == "progress":
                began = began or time.monotonic()
                on_progress(event["done"] / max(event["total"], 1))
        assert process.wait() == 0, "".join(told[-20:])
        return time.monotonic() - began

    def kill(self, after: float) -> bool:
        """Start it and kill it `after` seconds from its first progress; returns whether it was still at work then."""
        process = self.start()
        for line in process.stderr or ():
            if parse(line):
                break
        time.sleep(after)
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return alive

    def forget(self) -> None:
        """Remove dataset and state."""
        for name in ("dataset", ".dermaflow"):
            shutil.rmtree(self.workspace / name, ignore_errors=True)

    def digest(self) -> str:
        """The finished dataset's digest; its files are checked against it."""
        opened = Dataset.open(self.workspace / "dataset")
        assert changed_files(opened.artifact) == []
        return opened.artifact.digest


def digests_after_kills(ingest: Ingest, kills: int, seed: int = 0) -> tuple[str, list[str], int]:
    """Kill the ingest at random moments, each time from a fresh start, and start it again.

    Returns
    -------
    The undisturbed digest, the digest after each kill, and how many kills met the process at work.
    """
    seconds = ingest.finish()
    undisturbed = ingest.digest()
    moments = np.random.default_rng(seed)
    found, met = [], 0
    for _ in range(kills):
        ingest.forget()
        met += ingest.kill(moments.uniform(0, seconds))
        ingest.finish()
        found.append(ingest.digest())
        assert not list(ingest.workspace.glob(".dataset.*")), "a half-built folder was left behind"
    return undisturbed, found, met


def digest_after_outage(ingest: Ingest, server: S3Server, outage: float) -> tuple[str, str, float]:
    """Ingest from a store once in peace, and once while the store is gone for `outage` seconds in the middle.

    Returns
    -------
    The digest in peace, the digest with the outage, and the seconds that the latter took.
    """
    ingest.finish()
    calm = ingest.digest()
    ingest.forget()
    gone = threading.Event()

    def cut_off() -> None:
        server.stop()
        time.sleep(outage)
        server.start()

    thread = threading.Thread(target=cut_off)

    def on_progress(share: float) -> None:
        if share >= 0.3 and not gone.is_set():
            gone.set()
            thread.start()

    seconds = ingest.finish(on_progress)
    assert gone.is_set(), "the ingest ended before the store was cut off"
    thread.join()
    return calm, ingest.digest(), seconds
