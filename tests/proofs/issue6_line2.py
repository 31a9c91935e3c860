"""Issue 6, line 2: the report's numbers are those of the predictions."""

from __future__ import annotations

from tests.proofs.measuring import pytest_here

BOUND = "numbers in the report equal those computed afresh from predictions.parquet"


def prove() -> tuple[str, bool]:
    """On a finished run: its tables against scikit-learn and the artifacts."""
    return pytest_here("tests/e2e/test_report.py", "-k", "every_figure")
