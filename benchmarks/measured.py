"""How benchmarks measure: each contestant in a process of its own, on given cores, with its time and anonymous memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dermaflow.progress import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DERMAFLOW_SHARED", ROOT.parent / "shared"))
_BETWEEN_LOOKS = 0.02  # seconds


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
    """In a contestant's process: do the work, and tell its seconds (imports aside) and its result as JSON."""
    started = time.perf_counter()
    result = work()
    print("MEASURED " + json.dumps({"seconds": time.perf_counter() - started, "result": result}))


def run(script: str | Path, *arguments: str, cores: int | None = None) -> dict[str, Any]:
    """Run a contestant (`script --contestant NAME ...`) in a process of its own, on `cores` cores.

    TensorFlow uses oneDNN for each of them, as it does in the pipeline's steps on any processor.

    Returns
    -------
    seconds and result as it told them, and peak_anonymous_mib, imports included: looked at from outside, since a thread
    of its own would take its time, and its interpreter's lock.
    """
    with _started(script, arguments, cores, stderr=subprocess.PIPE) as process, peak_of_tree(process.pid) as peak:
        out, err = process.communicate()
        mib = peak()
    lines = [line for line in out.splitlines() if line.startswith("MEASURED ")]
    if process.returncode or not lines:
        raise _ended(process, err)
    return {**json.loads(lines[-1].removeprefix("MEASURED ")), "peak_anonymous_mib": round(mib, 1)}


class Player:
    """A contestant that works when it is its turn, and rests while it is another's: `Turn` is its side of it."""

    def __init__(self, process: subprocess.Popen[str], err: IO[str], peak: Callable[[], float]) -> None:
        self._process, self._err = process, err
        self.peak_mib = peak  # anonymous memory so far, as `run` measures it

    def play(self) -> float:
        """Give it its turn, until it hands over; the seconds that it tells."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("HANDED OVER "):
                return float(line.removeprefix("HANDED OVER "))
        self._process.wait()
        self._err.seek(0)
        raise _ended(self._process, self._err.read())


@contextmanager
def player(script: str | Path, *arguments: str) -> Iterator[Player]:
    """A contestant in a process of its own, started as by `run`, that waits for its first turn; ended with the block."""
    with (
        tempfile.TemporaryFile("w+") as err,
        _started(script, arguments, None, stdin=subprocess.PIPE, stderr=err) as process,
        peak_of_tree(process.pid) as peak,
    ):
        try:
            yield Player(process, err, peak)
        finally:
            process.kill()


class Turn:
    """In the process of a `player`: it waits until it is its turn."""

    def __init__(self) -> None:
        self._wait()

    def begin(self) -> None:
        """What was done in this turn so far is not timed."""
        self._began = time.monotonic()

    def hand_over(self) -> None:
        """The turn is over: tell its seconds, and wait for the next one."""
        print(f"HANDED OVER {time.monotonic() - self._began}", flush=True)
        self._wait()

    def _wait(self) -> None:
        sys.stdin.readline()
        self.begin()


def _started(script: str | Path, arguments: Sequence[str], cores: int | None, **pipes: Any) -> subprocess.Popen[str]:
    everywhere = os.sched_getaffinity(0)
    environment = {**os.environ, **ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    os.sync()  # what others wrote is not on its bill
    os.sched_setaffinity(0, sorted(everywhere)[:cores])  # the new process inherits it
    try:
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT, **pipes,
        )  # fmt: skip
    finally:
        os.sched_setaffinity(0, everywhere)


def _ended(process: subprocess.Popen[str], err: str) -> SystemExit:
    return SystemExit(f"{' '.join(map(str, process.args))} ended with exit code {process.returncode}\n{err[-2000:]}")


def tell(told: Mapping[str, Any], parts: Sequence[str], least: Mapping[str, float], most: Mapping[str, float]) -> None:
    """Print parts of a comparison for people, each figure that has a bound with it, and what was missed."""
    for part in parts:
        print(f"\n{part.replace('_', ' ')}")
        for name, value in told[part].items():
            bound = f"   (bound: at least {least[name]})" if name in least else ""
            bound += f"   (bound: at most {most[name]})" if name in most else ""
            print(f"  {name:<40} {value:>10}{bound}")
    print("\nmissed: " + ", ".join(told["missed"]) if told["missed"] else "\nevery bound holds")
