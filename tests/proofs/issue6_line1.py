"""Issue 6, line 1: the report in a browser without network."""

from __future__ import annotations

from tests.browser import CHROMIUM
from tests.proofs.measuring import pytest_here

BOUND = (
    "headless Chromium without network shows the report with no console error, no missing resource, every section, and no "
    "empty picture, at desktop and phone width; screenshots are kept"
)


def prove() -> tuple[str, bool]:
    """The browser's tests, none of them skipped."""
    if CHROMIUM is None:
        return "there is no Chromium here", False
    told, passed = pytest_here("tests/e2e/test_report.py", "-k", "browser or faults_of_a_page or tables_sort")
    return told, passed and "skipped" not in told
