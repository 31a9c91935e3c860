"""Issue 2, line 4: checks and tests in a fresh clone."""

from __future__ import annotations

from tests.proofs.clone import fresh_clone, make

BOUND = "make check passes; make test passes within 15 minutes after installation; .ci/run calls make check test"


def prove() -> tuple[str, bool]:
    """Run both, timed apart."""
    clone = fresh_clone("setup-dev")
    _, checking = make(clone, "check")
    printed, testing = make(clone, "test")
    calls = "make check test" in (clone / ".ci/run").read_text()
    closing = printed.strip().splitlines()[-1].strip("= ")
    return f"check {checking:.0f} s, test {testing / 60:.1f} minutes: {closing}", testing <= 900 and calls
