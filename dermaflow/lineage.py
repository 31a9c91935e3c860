"""Where a result comes from, beyond its inputs: commit, libraries, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = (
    "dermaflow",
    "tensorflow-cpu",
    "tensorflow",
    "keras",
    "numpy",
    "pandas",
    "opencv-python-headless",
    "scikit-learn",
    "shap",
    "mlflow",
    "kfp",
    "great-expectations",
)


def git_state(root: Path = Path()) -> dict[str, Any]:
    """The commit of a checkout and whether it has uncommitted changes (dvc.lock aside); None where there is no git."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ".", ":(exclude)dvc.lock")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.strip(), "dirty": bool(changed.strip())}


def environment() -> dict[str, Any]:
    """Versions of Python and of the libraries that shape results, operating system, processor and core count."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "libraries": found,
    }


def processor() -> str:
    """The processor's model: the same weights, bit for bit, are promised on one machine only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def machine() -> str:
    """System, processor and cores that this process may use, in a line."""
    return f"{platform.system()} {platform.machine()}, {processor()}, {len(os.sched_getaffinity(0))} cores"


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout
