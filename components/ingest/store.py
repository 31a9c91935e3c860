"""What ingest keeps between runs: the last dataset of a source, and the shards of a run that was cut short.

Layout below `state`, for each source and image size: `lock`; `current`, a link to the last finished Dataset in
`datasets/`; `work/`, the finished shards of a run that has not ended. Files are hard links of the artifact's own, so
that they take no room, wherever the file system allows it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dermaflow.artifacts import ARTIFACT_FILE, json_digest, new_artifact
from dermaflow.dataset import KIND, Dataset
from dermaflow.errors import InputError
from dermaflow.params import DataParams
from dermaflow.progress import tell

_CURRENT, _DATASETS, _WORK, _LOCK = "current", "datasets", "work", "lock"


class Store:
    """The place of one source's state; with no `folder`, nothing outlives the run."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def earlier(self, target: Path | None, recipe: dict[str, Any]) -> Dataset | None:
        """The dataset to go on from: the one at `target`, else the last of this source; None when neither was made alike."""
        places = [target, self._folder and self._folder / _CURRENT]
        found = [_open(place) for place in places if place and (place / ARTIFACT_FILE).is_file()]
        return next((dataset for dataset in found if dataset and dataset.info.get("recipe") == recipe), None)

    def work(self, building: Path) -> Path:
        """The folder for shards on their way: it survives a killed run where there is state."""
        folder = (self._folder or building) / _WORK
        folder.mkdir(exist_ok=True)
        return folder

    def clear(self, building: Path) -> None:
        """Leave nothing of `work` in the artifact."""
        shutil.rmtree(building / _WORK, ignore_errors=True)

    def keep(self, target: Path) -> None:
        """Make a finished dataset the one to go on from, in one step, and drop what led to it."""
        if self._folder is None:
            return
        artifact = Dataset.open(target).artifact
        place = self._folder / _DATASETS / artifact.digest.removeprefix("sha256:")[:16]
        if not (place / ARTIFACT_FILE).exists():
            with new_artifact(place, KIND, artifact.files) as folder:
                for name in artifact.files:
                    link_file(target / name, folder / name)
        link = self._folder / f".{_CURRENT}"
        link.unlink(missing_ok=True)
        link.symlink_to(place.relative_to(self._folder))
        link.replace(self._folder / _CURRENT)
        for old in (self._folder / _DATASETS).iterdir():
            if old != place:
                shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self._folder / _WORK, ignore_errors=True)


@contextmanager
def open_store(state: Path | None, params: DataParams) -> Iterator[Store]:
    """The store of a source, held alone until the end; a second run on the same source waits for the first.

    Raises
    ------
    InputError
        when `state` can not be written.
    """
    if state is None:
        yield Store(None)
        return
    key = json_digest(
        [params.source, params.image_size, params.resize, params.subset and params.subset.model_dump(mode="json")]
    )
    folder = state / key.removeprefix("sha256:")[:16]
    try:
        (folder / _DATASETS).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"can not write to {folder}: {error.strerror}; choose a folder you may write to") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting", text=f"waiting for another ingest of {params.source}", what=str(folder), seconds=0.0)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Store(folder)
    finally:
        os.close(descriptor)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system can not."""
    try:
        os.link(source, target, follow_symlinks=True)
    except OSError:
        shutil.copyfile(source, target)


def _open(place: Path) -> Dataset | None:
    try:
        return Dataset.open(place)
    except InputError:  # of another kind or version: not ours to go on from
        return None
