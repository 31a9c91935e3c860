"""What augmentation costs: the CNN's training step with transforms and MixUp, against the same step without.

    python benchmarks/augment.py [--images 512] [--size 224] [--rounds 4] [--json]

Images are noise, uint8, in memory; batches of 32 as in the study. One process takes the two steps in turn, so that whatever
else the machine does meets both alike, and their medians are compared; each alone in a process of its own tells its memory.
Compilation is left out.

    augmented   the trainer's own step: flips, turns, scale, brightness, hue and MixUp, by components.train's preparation
    plain       the same step on the same batches as they are: bytes to float32, labels to vectors
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from measured import contestant, run, tell

from dermaflow.lineage import machine

MOST = {"augmented / plain": 1.05}
BATCH, CLASSES = 32, 7


def steps(names: tuple[str, ...], images: int, size: int, rounds: int) -> Any:
    """Run the named steps in turn over an epoch's batches; median milliseconds of each, as a function to call."""
    import numpy as np
    import pandas as pd
    import tensorflow as tf

    from components.train.loop import Trainer
    from components.train.recipe import of_images
    from dermaflow.architectures import build_model
    from dermaflow.augmentation import NUMBERS, augmented, mix, plan_draws
    from dermaflow.params import load_params

    tf.config.experimental.enable_op_determinism()
    params = load_params("default")
    model = build_model("cnn", classes=CLASSES, size=size, channels=3, dropout=0.5, seed=1)
    recipe = of_images(params.train, "cnn", shares=np.full(CLASSES, 1 / CLASSES))
    rows = pd.DataFrame({"image_id": [f"I{k}" for k in range(images)], "weight": 1.0, "partner_weight": 0.0})
    draws = plan_draws(rows, params.augment, params.mixup, epoch=0)
    pixels = np.random.default_rng(0).integers(0, 256, (images, size, size, 3)).astype(np.uint8)
    labels = np.arange(images) % CLASSES

    def as_they_are(images: Any, labels: Any, *_: Any) -> tuple[Any, Any]:
        return tf.cast(images, tf.float32), tf.one_hot(labels, CLASSES)

    def changed(images: Any, labels: Any, *numbers: Any) -> tuple[Any, Any]:
        return augmented(images, *numbers), mix(tf.one_hot(labels, CLASSES), numbers[-1])

    prepared = {"plain": as_they_are, "augmented": changed}
    train_steps = {name: Trainer(model, prepared[name], recipe, 1).step for name in names}

    def go() -> Any:
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for start in list(range(0, images - BATCH + 1, BATCH)) * rounds:
            part = slice(start, start + BATCH)
            for name, train_step in train_steps.items():
                started = time.perf_counter()
                taken = draws.rows[part]
                batch = (pixels[taken], labels[taken], *draws.take(part, *NUMBERS, "mix"))
                float(train_step(*(tf.convert_to_tensor(array) for array in batch)))
                seconds[name].append(time.perf_counter() - started)
        return {name: 1000 * float(np.median(all_[2:])) for name, all_ in seconds.items()}

    return go


CONTESTANTS = {"plain": ("plain",), "augmented": ("augmented",), "in turn": ("plain", "augmented")}


def compare(images: int, size: int, rounds: int) -> dict[str, Any]:
    """Time both in turn, and look at the memory of each alone."""
    sizes = ("--images", str(images), "--size", str(size))
    found = {
        name: run(__file__, "--contestant", name, "--rounds", str(rounds if name == "in turn" else 1), *sizes)
        for name in CONTESTANTS
    }
    milliseconds = found["in turn"]["result"]
    return {
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "batch": BATCH,
        "size": size,
        "milliseconds_a_step": {name: round(value, 1) for name, value in milliseconds.items()},
        "peak_anonymous_mib": {name: found[name]["peak_anonymous_mib"] for name in ("plain", "augmented")},
        "ratios": {"augmented / plain": round(milliseconds["augmented"] / milliseconds["plain"], 4)},
        "bounds": MOST,
    }


def main() -> int:
    """Print the comparison; exit code 1 when the bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images in an epoch (default: 512)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--rounds", type=int, default=4, help="epochs that both take in turn (default: 4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contestant(steps(CONTESTANTS[options.contestant], options.images, options.size, options.rounds))
        return 0
    told = compare(options.images, options.size, options.rounds)
    told["missed"] = [name for name, most in MOST.items() if told["ratios"][name] > most]
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"CNN at {told['size']} pixels, batches of {BATCH}, on {told['machine']}")
        tell(told, ("milliseconds_a_step", "peak_anonymous_mib", "ratios"), {}, MOST)
    return 1 if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
