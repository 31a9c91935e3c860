"""Issue 8, line 1: images and a run in containers, held against a local run."""

from __future__ import annotations

import os

from tests.docker_server import ASKED
from tests.proofs.measuring import pytest_here

BOUND = (
    "two commands build the images and run the pipeline in containers to a registered model; result digests of the pure steps"
    " equal those of the local run"
)


def prove() -> tuple[str, bool]:
    """The tests of both commands, on a daemon and a base of their own; none of them skipped."""
    os.environ[ASKED] = "1"
    words = "pushed_and_locked or results_are or registered or nothing_to_build_with or not_roots or container_is_left"
    told, passed = pytest_here("tests/e2e/test_docker.py", "-k", words)
    return told, passed and "skipped" not in told
