"""Issue 4, augment: what transforms and MixUp cost in the CNN's step, and that batches can be drawn again."""

from __future__ import annotations

from tests.proofs.measuring import benchmark, pytest_here

BOUND = (
    "at most 5 % of the training step's time on the CNN at 224, measured against the step without augmentation in one run; two "
    "runs with the same seed produce the same batches bit for bit, and one that goes on at epoch k those of epoch k"
)
TESTS = ("tests/unit/test_augmentation.py", "tests/unit/test_train.py")
NAMED = "batches or epoch or plan or reached"


def prove() -> tuple[str, bool]:
    """`benchmarks/augment.py` at full size, and the tests of draws, plan and batches."""
    told, cheap = benchmark("augment")
    summary, passed = pytest_here(*TESTS, "-k", NAMED)
    times = ", ".join(f"{name} {value} ms" for name, value in told["milliseconds_a_step"].items())
    figure = f"augmented / plain {told['ratios']['augmented / plain']:.3f} ({times} a step of {told['batch']}); {summary}"
    return figure, cheap and passed
