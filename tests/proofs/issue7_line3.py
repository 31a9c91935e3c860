"""Issue 7, line 3: verify, audit, models and the chain within their time."""

from __future__ import annotations

from tests.proofs.measuring import benchmark

BOUND = (
    "After imports, verify without replay takes under 5 seconds for a version with 2,000 test predictions, audit under 10; "
    "1,000 versions and 10,000 ledger entries: models under 3 seconds after imports, chain verification linear."
)


def prove() -> tuple[str, bool]:
    """`benchmarks/registry.py` at full size."""
    told, holds = benchmark("registry")
    figures = "; ".join(f"{name} {value:.2f}" for name, value in told["figures"].items())
    ratios = ", ".join(f"{name} {value:.2f}" for name, value in told["ratios"].items())
    sizes = f"{told['test_predictions']} predictions, {told['versions']} versions, {told['entries']} entries"
    return f"{sizes}: {figures}; ratios {ratios}", holds
