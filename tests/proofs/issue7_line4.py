"""Issue 7, line 4: sixteen promotions at the same time."""

from __future__ import annotations

from tests.faults.test_killed_moves import AT_ONCE
from tests.proofs.measuring import pytest_here

BOUND = "16 promotions at the same time, on a folder and on S3: one chain, no lost entry, alias and ledger agree."


def prove() -> tuple[str, bool]:
    """The tests of promotions at the same time, at full size: on a folder and on S3, and two rollbacks at once."""
    told, passed = pytest_here("tests/faults/test_killed_moves.py", "-k", "same_time or one_of_two")
    return f"{AT_ONCE} at once, folder and S3: {told}", passed and AT_ONCE == 16 and "skipped" not in told
