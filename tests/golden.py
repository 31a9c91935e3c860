"""The compiled pipeline as the tests hold it: `python -m tests.golden` writes tests/pipelines/golden/ anew (`make golden`).

Digests of code, and of images, stand there as sha256:000...: an edit to a step is not a change of the pipeline's form.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from dermaflow.params import load_params
from pipelines.graph import compile_to

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "pipelines" / "golden"
PROFILES = ("default", "paper")


def compiled(profile: str) -> str:
    """The profile's IR, compiled in the project's root without a lock of images, its digests blanked."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "pipeline.yaml")
            compile_to(path, load_params(profile))
            return re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, path.read_text())
    finally:
        os.chdir(before)


def golden(profile: str) -> Path:
    """Where the profile's IR is kept."""
    return FOLDER / f"{profile}.ir"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in PROFILES:
        golden(name).write_text(compiled(name))
