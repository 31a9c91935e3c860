"""The training step against a bare Keras fit: images a second and peak memory, every layer trained, augmentation off.

    python benchmarks/train.py [--images 512] [--size 224] [--epochs 3] [--minutes 10] [--architectures cnn ...] [--json]

Images are noise, uint8, in memory on both sides, in batches of 32; ResNet50 and Xception are trained whole, from random
weights. Each contestant is a process of its own. They take turns, a step each, who is first alternates, and while one trains
the other rests; the median over the pairs of steps counts, and the quartiles are told beside it. For a virtual machine's
processors slow down to half, for seconds or minutes, when a neighbour works: neighbouring steps meet the same processors,
whole epochs or processes one after the other do not. The first epoch compiles and is left out, as are each epoch's last step,
judging and writing of a checkpoint, which are no steps or not to be told from those.

Peak memory is the highest of all that is done, judging and checkpoints between the epochs included: a limit has to allow for
it. Whether two large operations run at once is chance, so that Keras' peak alone differs by a tenth from one process to the
next. Therefore an architecture is trained anew, by new processes, until ten minutes have passed: a small one many times, a
large one once.

    ours    components.train's stage, as the pipeline runs it: draws, prefetching, checkpoints (none falls due in an epoch)
    keras   model.compile(Adam, CategoricalCrossentropy); model.fit(images, label vectors), on the same model
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

from measured import Turn, player, tell

from dermaflow.lineage import machine

LEAST = {"ours / keras, images a second": 0.97}
MOST = {"ours / keras, peak memory": 1.15}
BATCH, CLASSES = 32, 7
PARTS = ("images_per_second", "quartiles_of_pairs", "peak_anonymous_mib", "lowest_rounds_peak_mib")


def arrays(images: int, size: int) -> Any:
    """Noise, uint8 [n, size, size, 3], and labels."""
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (images, size, size, 3)).astype(np.uint8)
    return pixels, np.arange(images, dtype=np.int64) % CLASSES


def ours(turn: Turn, architecture: str, images: int, size: int, epochs: int) -> Any:
    """Training as the pipeline does it, a step in turn."""
    import numpy as np
    import pandas as pd
    import tensorflow as tf

    from components.train import stages
    from components.train.checkpoints import Arrays, Checkpoints
    from components.train.loop import fit
    from components.train.material import Material
    from components.train.recipe import of_images
    from dermaflow.architectures import build_model
    from dermaflow.augmentation import UNTOUCHED
    from dermaflow.params import load_params

    tf.config.experimental.enable_op_determinism()
    off = ("flips=false", "right_angle_turns=false", "scale=0", "brightness=0", "hue=0", "balance=none")
    settings = [*(f"augment.{entry}" for entry in off), "mixup.alpha=0", f"train.epochs={epochs}", f"train.batch_size={BATCH}"]
    params = load_params("default", settings)
    pixels, labels = arrays(images, size)
    names = [f"I{number}" for number in range(images)]
    dataset = SimpleNamespace(
        images=lambda rows: pixels[rows], labels=labels, classes=tuple("abcdefg"), image_size=size, content_digest=""
    )
    rows = np.arange(images)
    material = Material(
        dataset=dataset,  # type: ignore[arg-type] - in memory, where the pipeline's is mapped
        plan=pd.DataFrame({"image_id": names, "view": 0, "weight": 1.0, "partner_weight": 0.0, **UNTOUCHED}),
        mixes=pd.DataFrame(),
        plan_info={"augment": params.augment.model_dump(mode="json"), "mixup": params.mixup.model_dump(mode="json")},
        splits_info={},
        masks=Path(),
        train_rows=rows,
        validation_rows=rows[:CLASSES],
        developed=pd.DataFrame(),
        params=params.train,
    )
    model = build_model(architecture, classes=CLASSES, size=size, dropout=0.5, seed=1)
    recipe = of_images(params.train, architecture, shares=material.shares)

    class InTurn(Checkpoints):
        """As the pipeline writes them. The loop asks after each step, but an epoch's last, whether one is due."""

        def due(self) -> bool:
            turn.hand_over()
            return super().due()

        def write(self, name: str, arrays: Arrays, told: dict[str, Any]) -> None:
            super().write(name, arrays, told)
            turn.begin()

    def go() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit(stages.whole(model, material), recipe, InTurn(Path(folder), "bench", 1e9), architecture)

    return go


def keras(turn: Turn, architecture: str, images: int, size: int, epochs: int) -> Any:
    """A bare fit, a step in turn."""
    import keras
    import numpy as np
    import tensorflow as tf

    from dermaflow.architectures import build_model

    tf.config.experimental.enable_op_determinism()
    pixels, labels = arrays(images, size)
    model = build_model(architecture, classes=CLASSES, size=size, dropout=0.5, seed=1)
    model.compile(keras.optimizers.Adam(0.001), keras.losses.CategoricalCrossentropy(from_logits=True))

    class InTurn(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - Keras' signature
            if batch < images // BATCH - 1:
                turn.hand_over()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            turn.begin()

    def go() -> None:
        vectors = np.eye(CLASSES, dtype=np.float32)[labels]
        model.fit(pixels, vectors, batch_size=BATCH, epochs=epochs, shuffle=True, verbose=0, callbacks=[InTurn()])

    return go


CONTESTANTS = {work.__name__: work for work in (ours, keras)}


def compare(architecture: str, options: argparse.Namespace) -> dict[str, Any]:
    """Speed and memory of both, a step in turn, in rounds of new processes until the time is up."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    peaks: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    ends = time.monotonic() + 60 * options.minutes
    while not peaks["ours"] or time.monotonic() < ends:
        for name, (steps, mib) in play(architecture, options).items():
            seconds[name] += steps
            peaks[name].append(mib)
        print(f"{architecture}: round {len(peaks['ours'])} is over", file=sys.stderr)
    pairs = zip(seconds["ours"], seconds["keras"], strict=True)
    low, middle, high = quantiles([theirs / own for own, theirs in pairs], n=4, method="inclusive")
    return {
        "images_per_second": {name: round(BATCH / median(each), 2) for name, each in seconds.items()},
        "quartiles_of_pairs": {"low": round(low, 4), "high": round(high, 4)},
        "peak_anonymous_mib": {name: round(max(each), 1) for name, each in peaks.items()},
        "lowest_rounds_peak_mib": {name: round(min(each), 1) for name, each in peaks.items()},
        "ratios": {
            "ours / keras, images a second": round(middle, 4),
            "ours / keras, peak memory": round(max(peaks["ours"]) / max(peaks["keras"]), 4),
        },
    }


def play(architecture: str, options: argparse.Namespace) -> dict[str, tuple[list[float], float]]:
    """One round: by contestant, the seconds of each step but the first epoch's, and the peak memory in MiB."""
    sizes = ("--images", str(options.images), "--size", str(options.size), "--epochs", str(options.epochs))
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    turns = options.images // BATCH - 1  # an epoch
    with ExitStack() as stack:
        players = {
            name: stack.enter_context(player(__file__, "--contestant", name, "--architectures", architecture, *sizes))
            for name in CONTESTANTS
        }
        for step in range(turns * options.epochs):
            for name in list(CONTESTANTS)[:: -1 if step % 2 else 1]:
                seconds[name].append(players[name].play())
        return {name: (seconds[name][turns:], players[name].peak_mib()) for name in CONTESTANTS}


def main() -> int:
    """Print the comparison; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images an epoch (default: 512)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--epochs", type=int, default=3, help="the first compiles and does not count (default: 3)")
    parser.add_argument("--minutes", type=float, default=10, help="rounds of an architecture begin for so long (default: 10)")
    parser.add_argument("--architectures", nargs="+", default=["cnn", "resnet50", "xception"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        work = CONTESTANTS[options.contestant]
        work(Turn(), options.architectures[0], options.images, options.size, options.epochs)()
        return 0
    parts = {name: compare(name, options) for name in options.architectures}
    ratios = {f"{name}: {what}": value for name, part in parts.items() for what, value in part["ratios"].items()}
    least = {f"{name}: {what}": bound for name in parts for what, bound in LEAST.items()}
    most = {f"{name}: {what}": bound for name in parts for what, bound in MOST.items()}
    told = {
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "batch": BATCH,
        "size": options.size,
        **{
            what: {f"{name}, {who}": value for name, part in parts.items() for who, value in part[what].items()}
            for what in PARTS
        },
        "ratios": ratios,
        "bounds": least | most,
        "missed": [name for name, bound in least.items() if ratios[name] < bound]
        + [name for name, bound in most.items() if ratios[name] > bound],
    }
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"{options.images} images of {options.size} pixels in batches of {BATCH}, on {told['machine']}")
        tell(told, (*PARTS, "ratios"), least, most)
    return 1 if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
