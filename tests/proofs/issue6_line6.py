"""Issue 6, line 6: no real lesion in the documents, and the licence of the images goes with version and report."""

from __future__ import annotations

from tests.proofs.measuring import pytest_here

BOUND = "no picture of a real lesion is in the repository; the images' licence is on the version, in its card and in the report"


def prove() -> tuple[str, bool]:
    """The tests of both."""
    places = ("tests/unit/test_docs.py", "tests/e2e/test_report.py", "tests/unit/test_registry.py")
    return pytest_here(*places, "-k", "photograph or licence or lineage_card")
