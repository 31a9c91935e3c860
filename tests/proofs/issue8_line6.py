"""Issue 8, line 6: ten triggers at once."""

from __future__ import annotations

from tests.proofs.clone import fresh_clone, pytest

BOUND = (
    "trigger called 10 times at once on the same new data starts one run (a real conditional create on S3 and on a folder "
    "decides)"
)


def prove() -> tuple[str, bool]:
    """The tests of claims (ten processes, a folder and a real S3) and of the command (ten commands), in a fresh clone."""
    return pytest(fresh_clone("setup-dev"), "tests/pipelines/test_claims.py", "tests/pipelines/test_trigger.py"), True
