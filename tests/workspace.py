"""A working folder for the command: the project's own parameter files, in a place of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

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

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same within this process, where libraries that take seconds to import are there already.

        For commands that only read, where another test starts the command as a user does. Not with the registry that
        parameters name by default: MLflow keeps open what it opened under a name, and that one is relative.
        """
        from pipelines.cli import main

        out, err = StringIO(), StringIO()
        with patch("sys.argv", [str(DERMAFLOW), *arguments]), chdir(self.path), redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def json(self, *arguments: str) -> Any:
        """The JSON object that `dermaflow ARGUMENTS --json` prints; fails with the command's own words."""
        return _printed(self.run(*arguments, "--json"))

    def called_json(self, *arguments: str) -> Any:
        """The same by `call`."""
        return _printed(self.call(*arguments, "--json"))

    @property
    def registry(self) -> str:
        """The tracking URI of the embedded registry, by its whole path."""
        return f"sqlite:///{self.path}/.dermaflow/mlflow.db"

    def versions(self) -> list[dict[str, Any]]:
        """What `dermaflow models --json` prints."""
        told: list[dict[str, Any]] = self.called_json("models", *sets(f"register.tracking_uri={self.registry}"))
        return told


def _printed(done: subprocess.CompletedProcess[str]) -> Any:
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
