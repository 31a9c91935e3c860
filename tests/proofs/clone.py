"""A fresh clone of HEAD with an environment of its own: where proofs run what a newcomer would run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.proofs.prove import ROOT

PLACE = Path(tempfile.gettempdir()) / "dermaflow-proofs"
SHARED = ROOT.parent / "shared"


def fresh_clone(target: str = "setup") -> Path:
    """The clone of the commit to prove, made and set up (`make TARGET`) where it is not yet; proofs of a commit share it."""
    commit = os.environ["PROVED_COMMIT"]
    clone = PLACE / commit[:12]
    if not clone.exists():
        PLACE.mkdir(parents=True, exist_ok=True)  # clones of other commits stay: another `make prove` may be at work there
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "-C", str(clone), "checkout", "--quiet", commit], check=True)
    make(clone, target)
    return clone


def imagenet_weights(architecture: str) -> Path | None:
    """The 'notop' file of an architecture, rebuilt from packages where it is not yet; None where ../shared is not here."""
    if not SHARED.exists():
        return None
    folder = PLACE.with_name("dermaflow-weights")
    if not any(folder.glob(f"{architecture}_*")):
        subprocess.run([sys.executable, str(SHARED / "tools/imagenet_weights.py"), str(folder)], check=True)
    return next(folder.glob(f"{architecture}_*"))


def make(clone: Path, *targets: str) -> tuple[str, float]:
    """Run make in the clone, in an environment without ours; returns stdout and seconds. Raises when it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    path = environment["PATH"].split(os.pathsep)
    environment["PATH"] = os.pathsep.join(part for part in path if part != str(Path(sys.executable).parent))
    started = time.monotonic()
    done = subprocess.run(["make", *targets], cwd=clone, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stdout.write(done.stdout[-4000:])
        raise SystemExit(f"make {' '.join(targets)} failed in {clone}")
    return done.stdout, time.monotonic() - started


def dermaflow(clone: Path, *arguments: str) -> tuple[str, float]:
    """Run the clone's dermaflow command; returns stdout and seconds. Raises when it fails."""
    started = time.monotonic()
    done = subprocess.run([clone / ".venv/bin/dermaflow", *arguments], cwd=clone, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout, time.monotonic() - started


def pytest(clone: Path, *arguments: str) -> str:
    """Run the clone's tests; returns pytest's closing line. Raises when they fail."""
    make(clone, "setup-dev")
    command = [clone / ".venv/bin/python", "-m", "pytest", "-q", *arguments]
    done = subprocess.run(command, cwd=clone, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stdout.write(done.stdout[-4000:])
        raise SystemExit("tests failed")
    return done.stdout.strip().splitlines()[-1]
