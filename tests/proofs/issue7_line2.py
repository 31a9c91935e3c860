"""Issue 7, line 2: every tampering is found, and none where nobody touched anything."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from dermaflow import registry
from tests.proofs.measuring import pytest_here
from tests.registries import evidence_of, findings_of_fresh

BOUND = "All tamperings found, none on an untouched registry (20 fresh registries)."
FRESH = 20


def prove() -> tuple[str, bool]:
    """The tests of tamperings, in registry and dossier, none of them skipped; and 20 registries of a run made here."""
    told, passed = pytest_here("tests/unit/test_verification.py", "tests/unit/test_dossier.py")
    with tempfile.TemporaryDirectory(prefix="dermaflow-proof-") as scratch:
        empty = Path(scratch) / "new" / "mlflow.db"
        registry.connect(f"sqlite:///{empty}")
        found = findings_of_fresh(FRESH, empty, evidence_of(run(Path(scratch) / "run")), Path(scratch) / "fresh")
    print("\n".join(found), file=sys.stderr)
    figure = f"tamperings, in registry and dossier: {told}; findings in {FRESH} fresh registries: {len(found)}"
    return figure, passed and "skipped" not in told and not found


def run(folder: Path) -> Path:
    """A finished run, as the benchmark of the registry makes one."""
    from registry import small_run  # benchmarks/registry.py, which measuring put on the path

    return Path(small_run(folder))
