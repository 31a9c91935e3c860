"""Issue 5, line 1: the training step against a bare Keras fit."""

from __future__ import annotations

from tests.proofs.measuring import benchmark

BOUND = (
    "images per second of our training step at least 0.97 of a bare Keras fit on the same arrays already in memory with "
    "augmentation off on both sides, for all three architectures; peak memory at most 1.15 times its"
)


def prove() -> tuple[str, bool]:
    """`benchmarks/train.py` at full size."""
    told, holds = benchmark("train")
    return "; ".join(f"{name} {value:.3f}" for name, value in told["ratios"].items()), holds
