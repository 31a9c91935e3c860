"""Issue 8, line 3: the compiled IR."""

from __future__ import annotations

from tests.proofs.clone import fresh_clone, pytest

BOUND = (
    "compiled IR: byte-identical from run to run, no secret or machine path in it, under 256 KB; every task has limits, retry "
    "and timeout; each architecture asks for a GPU; validated against the KFP protobufs"
)


def prove() -> tuple[str, bool]:
    """The tests of the compiled spec, in a fresh clone."""
    return pytest(fresh_clone("setup-dev"), "tests/pipelines/test_compile.py", "tests/pipelines/test_provision.py"), True
