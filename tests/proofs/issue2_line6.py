"""Issue 2, line 6: help and JSON of the command."""

from __future__ import annotations

from tests.proofs.clone import fresh_clone, pytest

BOUND = (
    "help of the command and of each subcommand; --json of run, check, validate, evaluate and models is one JSON object or list"
)


def prove() -> tuple[str, bool]:
    """The tests of the command, in a fresh clone."""
    return pytest(fresh_clone("setup-dev"), "tests/e2e/test_command.py", "tests/e2e/test_run.py"), True
