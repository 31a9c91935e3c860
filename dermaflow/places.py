"""Where things outlive a run, relative to the working folder; DERMAFLOW_HOME moves them, say to a mounted volume."""

from __future__ import annotations

import os
from pathlib import Path

RUNS = Path("runs")


def home() -> Path:
    """The folder of caches, training state and the embedded registry."""
    return Path(os.environ.get("DERMAFLOW_HOME", ".dermaflow"))


def cache() -> Path:
    """Results that may be deleted at any time: features of frozen backbones, answers of unchanged steps."""
    return home() / "cache"


def state() -> Path:
    """Training state from which an interrupted step goes on; survives a retry."""
    return home() / "state"
