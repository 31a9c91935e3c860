"""Issue 6, line 3: text from data stays text."""

from __future__ import annotations

from tests.proofs.measuring import pytest_here

BOUND = "ids, file names and labels from the data can not inject HTML or script into the report, nor into a comparison"


def prove() -> tuple[str, bool]:
    """Hostile ids, labels and names in every artifact of a run."""
    return pytest_here("tests/e2e/test_report.py", "tests/e2e/test_comparison.py", "-k", "text_from_data")
