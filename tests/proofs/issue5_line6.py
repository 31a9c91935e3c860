"""Issue 5, line 6: what can not be trained is told in one message, and nothing is registered."""

from __future__ import annotations

from tests.proofs.measuring import pytest_here

BOUND = (
    "loss going NaN, a class absent from validation, a single-class dataset, a batch larger than the data, an image size too "
    "small for the architecture, GPU out of memory: one clear message each, nothing registered"
)
TESTS = ("tests/unit/test_train.py", "tests/unit/test_train_stages.py", "tests/e2e/test_bad_input.py")
NAMED = "no_number or can_not_be_trained or one_clear_error or training"


def prove() -> tuple[str, bool]:
    """The tests that bring each of them about."""
    return pytest_here(*TESTS, "-k", NAMED)
