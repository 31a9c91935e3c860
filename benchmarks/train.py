"""The training step against a bare Keras fit: images a second and peak memory, every layer trained, augmentation off.

    python benchmarks/train.py [--images 160] [--size 224] [--epochs 9] [--in-memory 512] [--architectures cnn ...] [--json]

Images are noise, uint8, in memory on both sides, in batches of 32; ResNet50 and Xception are trained whole, from random
weights. Each contestant is a process of its own. They take turns, a short epoch of `--images` each, and while one trains the
other rests; the best epoch of each counts, and the median is told beside it. A virtual machine's processors slow down to half
for seconds or minutes when a neighbour works: in long epochs, one contestant after the other, that looked like a difference of
a tenth. The first epoch compiles and is left out; judging and writing the checkpoint after an epoch are no training and are
left out too. Peak memory is that of two epochs of `--in-memory` images with all that comes after each.

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
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from measured import Player, await_turn, hand_over, player, tell

from dermaflow.lineage import machine

LEAST = {"ours / keras, images a second": 0.97}
MOST = {"ours / keras, peak memory": 1.15}
BATCH, CLASSES = 32, 7
PARTS = ("images_per_second", "images_per_second_median", "peak_anonymous_mib")


def arrays(images: int, size: int) -> Any:
    """Noise, uint8 [n, size, size, 3], and labels."""
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (images, size, size, 3)).astype(np.uint8)
    return pixels, np.arange(images, dtype=np.int64) % CLASSES


def ours(architecture: str, images: int, size: int, epochs: int) -> Any:
    """Images a second of each epoch, as the history tells them."""
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
        """As the pipeline writes them; with that of an epoch's end the turn ends."""

        def write(self, name: str, arrays: Arrays, told: dict[str, Any]) -> None:
            super().write(name, arrays, told)
            if name == stages.WHOLE_STAGE:
                hand_over(told["history"][-1]["images_per_second"])

    def go() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit(stages.whole(model, material), recipe, InTurn(Path(folder), "bench", 1e9), architecture)

    return go


def keras(architecture: str, images: int, size: int, epochs: int) -> Any:
    """Images a second of each epoch, from its first batch to the end of its last."""
    import keras
    import numpy as np
    import tensorflow as tf

    from dermaflow.architectures import build_model

    tf.config.experimental.enable_op_determinism()
    pixels, labels = arrays(images, size)
    model = build_model(architecture, classes=CLASSES, size=size, dropout=0.5, seed=1)
    model.compile(keras.optimizers.Adam(0.001), keras.losses.CategoricalCrossentropy(from_logits=True))

    class InTurn(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - Keras' signature
            self.began = time.monotonic()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            hand_over(images / (time.monotonic() - self.began))

    def go() -> None:
        vectors = np.eye(CLASSES, dtype=np.float32)[labels]
        model.fit(pixels, vectors, batch_size=BATCH, epochs=epochs, shuffle=True, verbose=0, callbacks=[InTurn()])

    return go


CONTESTANTS = {work.__name__: work for work in (ours, keras)}


def compare(architecture: str, options: argparse.Namespace) -> dict[str, Any]:
    """Speed of both, an epoch in turn; then the memory of each, alone."""
    speed: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with ExitStack() as stack:
        players = {
            name: stack.enter_context(one_of(name, architecture, options.size, options.images, options.epochs))
            for name in CONTESTANTS
        }
        for epoch in range(options.epochs):
            for name in list(CONTESTANTS)[:: -1 if epoch % 2 else 1]:
                speed[name].append(players[name].play())
    memory = {}
    for name in CONTESTANTS:
        with one_of(name, architecture, options.size, options.in_memory, 2) as alone:
            for _ in range(2):  # in the second the best weights of the first are kept
                alone.play()
            memory[name] = alone.peak_anonymous_mib
    best, middle = ({name: round(of(each[1:]), 2) for name, each in speed.items()} for of in (max, median))
    return {
        "images_per_second": best,
        "images_per_second_median": middle,
        "peak_anonymous_mib": memory,
        "ratios": {
            "ours / keras, images a second": round(best["ours"] / best["keras"], 4),
            "ours / keras, peak memory": round(memory["ours"] / memory["keras"], 4),
        },
    }


def one_of(name: str, architecture: str, size: int, images: int, epochs: int) -> AbstractContextManager[Player]:
    """A contestant."""
    sizes = ("--images", str(images), "--size", str(size), "--epochs", str(epochs))
    return player(__file__, "--contestant", name, "--architectures", architecture, *sizes)


def main() -> int:
    """Print the comparison; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160, help="images an epoch (default: 160)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--epochs", type=int, default=9, help="of each; the first compiles and does not count (default: 9)")
    parser.add_argument("--in-memory", type=int, default=512, help="images where memory is measured (default: 512)")
    parser.add_argument("--architectures", nargs="+", default=["cnn", "resnet50", "xception"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        work = CONTESTANTS[options.contestant](options.architectures[0], options.images, options.size, options.epochs)
        await_turn()
        work()
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
