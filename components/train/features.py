"""Features of frozen layers: computed once for each (weights, image, view), kept on disk, reused ever after.

A block of features is a .npy file that is mapped into memory, so that features may be larger than memory: a head's are
2,048 numbers an image, those of a frozen prefix some 200,000.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.train.checkpoints import end_if_asked
from dermaflow.artifacts import json_digest
from dermaflow.errors import InputError
from dermaflow.progress import progress

BLOCK_IMAGES = 256  # features of so many images are written at a time: at most so many are lost when killed

Compute = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Features:
    """Features of n views, each of `shape`; in memory only when they are taken.

    Attributes
    ----------
    blocks: memory-mapped arrays [k, *shape].
    places: block and row in it of each view, int64 [n, 2].
    """

    blocks: Sequence[npt.NDArray[np.floating[Any]]]
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one view's features."""
        return self.blocks[0].shape[1:]

    def take(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.floating[Any]]:
        """Features [k, *shape] of the views at `positions`, as they are stored."""
        taken = np.empty((len(positions), *self.shape), self.blocks[0].dtype)
        for place, (block, row) in enumerate(self.places[positions]):
            taken[place] = self.blocks[block][row]
        return taken

    def all(self) -> npt.NDArray[np.floating[Any]]:
        """Features of all views, in memory."""
        return self.take(np.arange(len(self)))


class FeatureStore:
    """A folder of feature blocks under one key; each block is a .npy file [k, *shape] and a .txt file of its k names."""

    def __init__(self, root: Path, key: dict[str, object], dtype: type[np.floating[Any]]) -> None:
        """Open the folder of what `key` describes (weights' digest, layers, input mode, image size, precision)."""
        self.folder = root / json_digest({**key, "dtype": np.dtype(dtype).name}).removeprefix("sha256:")[:32]
        self._dtype = dtype

    def get(self, names: Sequence[str], compute: Compute, text: str) -> Features:
        """Features of the named views, in their order.

        `compute` gets the positions (int64) of names that are not stored yet, BLOCK_IMAGES at a time at most.
        """
        stored = self._places()
        missing = np.array([position for position, name in enumerate(names) if name not in stored], np.int64)
        for start in range(0, len(missing), BLOCK_IMAGES):
            positions = missing[start : start + BLOCK_IMAGES]
            self._save([names[position] for position in positions], compute(positions))
            progress(text, start + len(positions), len(missing))
            end_if_asked(text)
        stored = self._places() if len(missing) else stored
        files = sorted({stored[name][0] for name in names})
        number = {file: place for place, file in enumerate(files)}
        places = np.array([(number[file], row) for file, row in (stored[name] for name in names)], np.int64)
        return Features([np.load(self.folder / file, mmap_mode="r") for file in files], places)

    def _places(self) -> dict[str, tuple[str, int]]:
        """File and row of each stored view; a block counts once its .npy is there."""
        stored: dict[str, tuple[str, int]] = {}
        for path in sorted(self.folder.glob("block-*.npy")):
            for row, name in enumerate(path.with_suffix(".txt").read_text().splitlines()):
                stored[name] = path.name, row
        return stored

    def _save(self, names: list[str], features: npt.NDArray[np.floating[Any]]) -> None:
        limit = np.finfo(self._dtype).max
        if not np.isfinite(features).all():
            raise InputError(
                "features of the frozen layers are not finite; look at train.weights, or use train.precision=float32"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
        block = self.folder / f"block-{digest[:32]}.npy"
        with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".tmp", delete=False) as listed:
            listed.write("\n".join(names))
        os.replace(listed.name, block.with_suffix(".txt"))
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as file:
            np.save(file, np.clip(features, -limit, limit).astype(self._dtype))
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, block)
