"""Issue 2, line 3: bad input ends in one message, exit code 2, and no registered version."""

from __future__ import annotations

from tests.proofs.clone import fresh_clone, pytest

BOUND = (
    "every bad input of the issue refused with one message and exit code 2; a step that raises shows its last error and the log"
)


def prove() -> tuple[str, bool]:
    """The tests of bad input, in a fresh clone: they run the command as a user does."""
    return pytest(fresh_clone("setup-dev"), "tests/e2e/test_bad_input.py"), True
