"""What an interrupted explanation has done already: one file for each image and each thing that was done with it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


class Kept:
    """A folder of results under the key of what they were made from; each file is there whole, or not at all."""

    def __init__(self, root: Path, key: str) -> None:
        self._folder = root / "explain" / key

    def get(self, task: str, image_id: str, make: Callable[[], Arrays]) -> Arrays:
        """The result of a task on an image: read where it is kept and whole, else made and kept."""
        path = self._folder / f"{hashlib.sha256(f'{task}/{image_id}'.encode()).hexdigest()[:32]}.npz"
        try:
            with np.load(path) as stored:
                return dict(stored)
        except (OSError, ValueError, zipfile.BadZipFile):  # not there, or damaged: neither is to be trusted
            made = make()
        with suppress(FileNotFoundError):  # a run of the same inputs beside this one has ended, and removed the folder
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".tmp", delete=False) as file:
                np.savez(file, **made)  # type: ignore[arg-type]  # no array of ours is named allow_pickle
            os.replace(file.name, path)
        return made

    def forget(self) -> None:
        """Remove it all: the artifact has what it came to."""
        shutil.rmtree(self._folder, ignore_errors=True)
