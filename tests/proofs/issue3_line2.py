"""Issue 3, line 2: ingest against a newcomer's recipe, Keras' loader and the decoder's own speed."""

from __future__ import annotations

from tests.proofs.measuring import benchmark

BOUND = "on the 177 originals repeated to 5,000: at least 1.7 times the newcomer's recipe, at least 80 % of the bound"


def prove() -> tuple[str, bool]:
    """`benchmarks/ingest.py` at full size."""
    told, passed = benchmark("ingest")
    ratios = ", ".join(f"{name} {value:.2f}" for name, value in told["ratios"].items())
    speed = told["images_per_second"][f"ingest, {told['cores']} cores"]
    memory = told["peak_anonymous_mib"]
    return (
        f"{ratios}; {speed:.0f} images/s; peak MiB: ingest {memory['ingest']:.0f}, newcomer {memory['newcomer']:.0f}, "
        f"keras {memory['keras']:.0f}"
    ), passed
