"""Issue 3, line 5: hostile and broken inputs."""

from __future__ import annotations

import re

from tests.proofs.clone import fresh_clone, pytest

BOUND = "40 or more hostile or broken inputs, each with its own expected reason; none crashes, none passes silently"


def prove() -> tuple[str, bool]:
    """Their tests, in a fresh clone."""
    closing = pytest(fresh_clone("setup-dev"), "tests/unit/test_hostile_input.py", "tests/unit/test_decode.py")
    passed = re.search(r"(\d+) passed", closing)
    return closing, passed is not None and int(passed[1]) >= 40
