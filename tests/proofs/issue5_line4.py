"""Issue 5, line 4: a training that is killed at any moment ends with the weights of one that was not."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.faults.killed_training import digests_after_kills
from tests.workspace import TINY, make_workspace

BOUND = (
    "kill -9 during training at 10 random moments, restarted by the pipeline's own retry: final weights' digest equal to the "
    "undisturbed run's, each time, for the CNN and for a fine-tuned ResNet50 at small size"
)
KILLS = 10
ARCHITECTURES = ("cnn", "resnet50")
SETTINGS = (
    *TINY, "train.architectures=[cnn,resnet50]", "train.epochs=6", "train.head_epochs=4", "train.fine_tune.epochs=4",
    "train.fine_tune.blocks={resnet50: conv5}", "augment.feature_views=2",
)  # fmt: skip


def prove() -> tuple[str, bool]:
    """Eleven runs of the whole pipeline, in ten of which both trainings are killed once."""
    from dermaflow.phantom import draw_phantoms

    with tempfile.TemporaryDirectory(prefix="dermaflow-proof-") as scratch:
        workspace = make_workspace(Path(scratch) / "workspace")
        draw_phantoms(workspace.path / "data/phantom", images=84, seed=7, workers=1)
        undisturbed, found, met = digests_after_kills(workspace, KILLS, *SETTINGS, architectures=ARCHITECTURES)
        left = list((workspace.path / ".dermaflow/state").rglob("*.npz"))
    equal = {name: sum(digests[name] == undisturbed[name] for digests in found) for name in ARCHITECTURES}
    told = ", ".join(f"{name} {number} of {KILLS} digests equal" for name, number in equal.items())
    passed = all(number == KILLS for number in equal.values()) and met == KILLS * len(ARCHITECTURES) and not left
    return f"{told}; {met} kills met a training at work; training state left behind: {len(left)} files", passed
