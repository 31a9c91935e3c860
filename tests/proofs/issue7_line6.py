"""Issue 7, line 6: the dossier in a browser without network."""

from __future__ import annotations

from tests.browser import CHROMIUM
from tests.proofs.measuring import pytest_here

BOUND = "The dossier opened in headless Chromium: complete, no network, you looked at it."


def prove() -> tuple[str, bool]:
    """The page's tests, the browser's among them, none skipped; screenshots are kept."""
    if CHROMIUM is None:
        return "there is no Chromium here", False
    told, passed = pytest_here("tests/e2e/test_dossier.py")
    return f"{told}; screenshots in build/screenshots", passed and "skipped" not in told
