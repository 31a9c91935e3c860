"""Issue 8, line 5: what a container may not do."""

from __future__ import annotations

import os

from tests.docker_server import ASKED
from tests.proofs.measuring import pytest_here

BOUND = (
    "a container test proves: non-root, read-only root, no capability, no network in pure steps, memory limit kills are"
    " reported as such with the remedy"
)


def prove() -> tuple[str, bool]:
    """Containers asked with their tasks' own arguments, and a step with too little memory; none of the tests skipped."""
    os.environ[ASKED] = "1"
    told, passed = pytest_here("tests/e2e/test_docker.py", "-k", "needs_and_no_more or ended_for_its_memory")
    return told, passed and "skipped" not in told
