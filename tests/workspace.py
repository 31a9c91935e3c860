"""A working folder for the command: the project's own parameter files, in a place of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
DERMAFLOW = Path(sys.executable).with_name("dermaflow")

# The whole pipeline with all three architectures, as small as they accept: 84 phantoms at 72 pixels.
TINY = (
    "data.image_size=72", "train.epochs=2", "train.head_epochs=3", "train.batch_size=16", "explain.images=4",
    "explain.background=2", "evaluate.bootstrap=200",
)  # fmt: skip


@dataclass(frozen=True)
class Workspace:
    """A folder with params.yaml, params/ and mlflow/, in which the command runs as a user would run it."""

    path: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`dermaflow ARGUMENTS` in the folder; output is captured."""
        command = [str(DERMAFLOW), *arguments]
        return subprocess.run(
            command, cwd=self.path, capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )

    def json(self, *arguments: str) -> Any:
        """The JSON object that `dermaflow ARGUMENTS --json` prints; fails with the command's own words."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def make_workspace(path: Path) -> Workspace:
    """Lay out a working folder at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for name in ("params.yaml", "params", "mlflow"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, path / name)
    return Workspace(path)


def sets(*values: str) -> list[str]:
    """`--set` options."""
    return [part for value in values for part in ("--set", value)]
