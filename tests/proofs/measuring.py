"""What proofs of speed and memory share: a benchmark's JSON, and a command timed with the memory of its process tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dermaflow.params import Params
from tests.proofs.clone import PLACE
from tests.proofs.prove import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from prepared import Prepared, made_by, short, unnamed, write_told

__all__ = ["Prepared", "benchmark", "keep_evidence", "place_of", "pytest_here", "stands", "timed", "unnamed", "write_told"]


def benchmark(name: str, *arguments: str) -> tuple[dict[str, Any], bool]:
    """Run `benchmarks/NAME.py --json`; returns what it printed, and whether every bound holds."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout.strip():
        raise SystemExit(f"{name} ended with exit code {done.returncode} and said nothing")
    told: dict[str, Any] = json.loads(done.stdout)
    return told, done.returncode == 0


def pytest_here(*arguments: str) -> tuple[str, bool]:
    """Run tests in this tree; returns pytest's closing line, and whether all passed."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1], done.returncode == 0


def timed(command: list[str], folder: Path, **environment: str) -> tuple[float, float, subprocess.CompletedProcess[str]]:
    """Run a command in a folder: seconds, peak anonymous memory of its process tree in MiB, and the finished process."""
    from measured import peak_of_tree

    started = time.monotonic()
    with (
        subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        ) as process,
        peak_of_tree(process.pid) as peak,
    ):
        out, err = process.communicate()
        mib = peak()
    return time.monotonic() - started, mib, subprocess.CompletedProcess(command, process.returncode, out, err)


def place_of(name: str, params: Params) -> Path:
    """Where a long proof works: found again by another commit, as long as code and parameters of its models are the same."""
    return PLACE / f"{name}-{short(made_by(params))}"


def stands(evidence: Path, params: Params) -> bool:
    """Whether a JSON file of evidence is there and was made by this code and these parameters, maybe in another session."""
    return evidence.exists() and json.loads(evidence.read_text())["made_by"] == made_by(params)


def keep_evidence(evidence: Path, told: dict[str, Any], params: Params) -> None:
    """Write a JSON file of evidence under docs: what is told, the commit, and what it was made by."""
    evidence.parent.mkdir(parents=True, exist_ok=True)
    whole = {"commit": os.environ["PROVED_COMMIT"], "made_by": made_by(params), **told}
    evidence.write_text(json.dumps(whole, indent=2) + "\n")
