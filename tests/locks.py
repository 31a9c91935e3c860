"""Locks of images for tests; their digests are of nothing, unless a test gives one that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipelines.images import GROUPS

_TOOL = {"revision": "c" * 40, "builder": "a test", "mark": "release"}


def write_lock(path: Path, without: str | None = None, **changes: Any) -> Path:
    """A lock with every group but one; `changes` are of each image."""
    images = {
        group: {"reference": f"registry.example/dermaflow-python/{group}", "digest": f"sha256:{at:064x}", **_TOOL, **changes}
        for at, group in enumerate(GROUPS)
        if group != without
    }
    path.write_text(yaml.safe_dump({"version": 1, "images": images}))
    return path
