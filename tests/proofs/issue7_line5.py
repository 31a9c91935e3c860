"""Issue 7, line 5: kill -9 at every point of promote and rollback."""

from __future__ import annotations

from tests.proofs.measuring import pytest_here

BOUND = (
    "kill -9 at every point of promote and rollback (fault injection between each two steps): verify tells, --repair mends, "
    "nothing is lost."
)


def prove() -> tuple[str, bool]:
    """The tests that kill after each write, of a person's promotion, the pipeline's, a rollback and a registration."""
    told, passed = pytest_here("tests/faults/test_killed_moves.py", "-k", "that_is_killed")
    return told, passed and "skipped" not in told and "4 passed" in told
