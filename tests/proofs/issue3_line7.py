"""Issue 3, line 7: near duplicates over all pairs of HAM10000."""

from __future__ import annotations

from tests.proofs.clone import SHARED
from tests.proofs.measuring import benchmark

BOUND = (
    "over all 50 million pairs: the precision-recall frontier printed; working point at precision at least 0.95, recall at "
    "least 0.50 there or why the frontier ends earlier (docs/neighbours.md); no joined group over 20 images"
)


def prove() -> tuple[str, bool]:
    """`benchmarks/neighbours.py` at full size."""
    if not SHARED.exists():
        return "the real images (../shared) are not here", False
    told, passed = benchmark("neighbours", "--source", str(SHARED / "data" / "ham10000"))
    figures = {**told["figures"], "missed": told["missed"] or "nothing"}
    frontier = ", ".join(f"{level}: {recall:.3f}" for level, recall in told["recall_at_precision"].items())
    return ", ".join(f"{name} {value}" for name, value in figures.items()) + f"; recall at precision {frontier}", passed
