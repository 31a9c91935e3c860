"""Issue 4, segment: K-means masks against the experts' masks on all of HAM10000, and the step's speed."""

from __future__ import annotations

from tests.proofs.clone import SHARED
from tests.proofs.measuring import benchmark

BOUND = (
    "constants chosen on the even half of the lesions; on the untouched odd half mean Dice at least 0.84 over images and at "
    "least 0.78 over classes, fallback at most 2 %; at most 10 ms an image and core for the whole step; at least 8 times "
    "faster than the plain recipe with scikit-learn's KMeans(n_init=10)"
)


def prove() -> tuple[str, bool]:
    """`benchmarks/segment.py` at full size."""
    if not SHARED.exists():
        return "the real images (../shared) are not here", False
    told, passed = benchmark("segment", "--source", str(SHARED / "data" / "ham10000"))
    halves = "; ".join(
        f"{name}: Dice {half['mean Dice']:.3f} over images, {half['mean Dice over classes']:.3f} over classes, "
        f"{half['mean Dice without fallbacks']:.3f} without fallbacks, fallback {half['fallback']:.1%}"
        for name, half in told["halves"].items()
    )
    ratios = ", ".join(f"{name} {value}" for name, value in told["ratios"].items())
    speed = told["milliseconds_an_image_and_core"]["segment"]
    return f"{halves}; {speed} ms an image and core; {ratios}; plain recipe's Dice {told['plain_dice']:.3f}", passed
