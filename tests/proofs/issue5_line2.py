"""Issue 5, line 2: transfer learning against a newcomer's recipe."""

from __future__ import annotations

from tests.proofs.clone import imagenet_weights
from tests.proofs.measuring import benchmark

BOUND = (
    "frozen ResNet50, 10 epochs on 2,000 real images, feature cache empty at the start, same split, against the newcomer's "
    "recipe: at least 7 times faster in wall time on CPU, validation balanced accuracy no lower"
)


def prove() -> tuple[str, bool]:
    """`benchmarks/transfer.py` at full size."""
    weights = imagenet_weights("resnet50")
    if weights is None:
        return "the real images (../shared) are not here", False
    told, holds = benchmark("transfer", "--weights", str(weights))
    seconds, scores, ratios = told["seconds"], told["balanced_accuracy"], told["ratios"]
    return (
        f"{ratios['newcomer / ours, seconds']:.2f} times faster ({seconds['newcomer']:.0f} s, {seconds['ours']:.0f} s; with a "
        f"warm cache {seconds['warm']:.0f} s); validation balanced accuracy {scores['ours']:.3f}, newcomer's "
        f"{scores['newcomer']:.3f}; seconds to the newcomer's best {told['seconds_to_the_newcomers_best']}"
    ), holds
