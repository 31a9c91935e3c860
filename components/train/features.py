"""Features of a frozen backbone: computed once for each (backbone weights, image, view), kept on disk, reused ever after."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dermaflow.artifacts import json_digest
from dermaflow.progress import progress

BLOCK_IMAGES = 256  # features of so many images are written at a time: at most so many are lost when killed

Compute = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]


class FeatureStore:
    """A folder of feature blocks under one backbone's key; each block is a .npz of names and float32 [n, d]."""

    def __init__(self, root: Path, key: dict[str, object]) -> None:
        """Open the folder of the backbone that `key` describes (weights' digest, input mode, image size)."""
        self.folder = root / json_digest(key).removeprefix("sha256:")[:32]

    def get(self, names: list[str], compute: Compute, text: str) -> npt.NDArray[np.float32]:
        """Features float32 [n, d] of the named views, in their order.

        `compute` gets the positions (int64) of names that are not stored yet, BLOCK_IMAGES at a time at most.
        """
        stored = self._load()
        missing = np.array([position for position, name in enumerate(names) if name not in stored], np.int64)
        for start in range(0, len(missing), BLOCK_IMAGES):
            positions = missing[start : start + BLOCK_IMAGES]
            block = compute(positions)
            self._save([names[position] for position in positions], block)
            stored.update(zip((names[position] for position in positions), block, strict=True))
            progress(text, start + len(positions), len(missing))
        return np.stack([stored[name] for name in names])

    def _load(self) -> dict[str, npt.NDArray[np.float32]]:
        stored: dict[str, npt.NDArray[np.float32]] = {}
        for path in sorted(self.folder.glob("block-*.npz")):
            with np.load(path) as block:
                stored.update(zip(block["names"].tolist(), block["features"], strict=True))
        return stored

    def _save(self, names: list[str], features: npt.NDArray[np.float32]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as file:
            np.savez(file, names=np.array(names), features=features)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, self.folder / f"block-{digest}.npz")
