"""How benchmarks measure: each contestant in a process of its own, on given cores, with its time and anonymous memory."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DERMAFLOW_SHARED", ROOT.parent / "shared"))
_BETWEEN_LOOKS = 0.01  # seconds


def anonymous_mib(pid: int | str = "self") -> float:
    """RssAnon of a process in MiB: memory that no file backs. 0 when the process has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0.0


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        try:
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@contextmanager
def peak_of_tree(pid: int) -> Iterator[Callable[[], float]]:
    """Sample the anonymous memory of a process tree, summed; the yielded function tells the highest sum so far in MiB."""
    peak, stop = [0.0], threading.Event()

    def look() -> None:
        while not stop.wait(_BETWEEN_LOOKS):
            peak[0] = max(peak[0], sum(map(anonymous_mib, tree(pid))))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        thread.join()


def contestant(work: Callable[[], Any]) -> None:
    """In a contestant's process: do the work, and tell its seconds (imports aside), peak memory and result as JSON."""
    with peak_of_tree(os.getpid()) as peak:
        started = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - started
        mib = peak()
    print("MEASURED " + json.dumps({"seconds": seconds, "peak_anonymous_mib": round(mib, 1), "result": result}))


def run(script: str | Path, *arguments: str, cores: int | None = None) -> dict[str, Any]:
    """Run a contestant (`script --contestant NAME ...`) in a process of its own, on `cores` cores; returns what it measured."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    command = [sys.executable, str(script), *arguments]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),  # no thread runs yet
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("MEASURED ")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}\n{done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(lines[-1].removeprefix("MEASURED "))
    return measured


def machine() -> str:
    """System, processor and cores."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{platform.system()} {platform.machine()}, {model}, {len(os.sched_getaffinity(0))} cores"
