"""Transfer learning, from image files to a trained head, against a newcomer's recipe: wall time and balanced accuracy.

    python benchmarks/transfer.py --weights FILE [--source DIR] [--images 2000] [--epochs 10] [--json]

`--source` is in HAM10000's layout (default: ../shared's, at 224 pixels); `--images` of it are taken, by whole lesions, and
parted by lesion: train and validation are the same images for both. ResNet50 with ImageNet weights, its backbone frozen, its
head trained for `--epochs` with Adam. Seconds are without imports; each contestant is a process of its own.

    ours        components.ingest, segment, split and augment as they are, then components.train with an empty cache of
                features: each image as it is, as the newcomer has it; the model file is written
    newcomer    keras.utils.image_dataset_from_directory, preprocessing and frozen backbone in one model, model.fit with
                validation after each epoch: every epoch computes the same features again
    warm        ours once more: features are in the cache

Balanced accuracy is that of the epoch that is kept: by validation, for both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured import SHARED, contestant, run, tell

from dermaflow.lineage import machine

LEAST = {"newcomer / ours, seconds": 7.0, "ours - newcomer, balanced accuracy": 0.0}
SIZE, BATCH = 224, 32
HAM10000 = SHARED / "data" / "ham10000"


def lay_out(source: Path, images: int, folder: Path) -> None:
    """The lesions' images in a source of their own, split once, and the same files in class folders for Keras."""
    import pandas as pd

    from components.ingest.core import ingest
    from components.split.core import split
    from dermaflow.contracts import read_splits

    (metadata,) = source.glob("*metadata*")
    table = pd.read_csv(metadata, dtype=str, keep_default_na=False)
    lesions = pd.Series(table["lesion_id"].unique()).sample(frac=1, random_state=20240101)
    order = table.set_index("lesion_id").loc[lesions].reset_index()
    chosen = order.iloc[:images]
    (folder / "source" / "images").mkdir(parents=True)
    chosen.to_csv(folder / "source" / metadata.name, index=False)
    files = {path.stem: path for path in source.rglob("*") if path.suffix in (".jpg", ".png")}
    for image in chosen["image_id"]:
        shutil.copyfile(files[image], folder / "source" / "images" / files[image].name)
    params = _params(folder)
    ingest(params.data, folder / "first" / "dataset", folder / "first" / "state")
    split(folder / "first" / "dataset", params.split, folder / "first" / "splits")
    for row in read_splits(folder / "first" / "splits").itertuples():
        place = folder / "classes" / str(row.split) / str(row.label)
        place.mkdir(parents=True, exist_ok=True)
        os.link(folder / "source" / "images" / files[row.image_id].name, place / files[row.image_id].name)


def _params(folder: Path, *settings: str) -> Any:
    from dermaflow.params import load_params

    return load_params("default", [f"data.source={folder / 'source'}", f"data.image_size={SIZE}", *settings])


def ours(folder: Path, weights: Path, epochs: int) -> Any:
    """The pipeline's own steps, one after the other."""
    return _ours(folder, weights, epochs, warm=False)


def warm(folder: Path, weights: Path, epochs: int) -> Any:
    """The same, with features in the cache."""
    return _ours(folder, weights, epochs, warm=True)


def _ours(folder: Path, weights: Path, epochs: int, *, warm: bool) -> Any:
    import keras  # noqa: F401 - imports are not timed

    from components.augment.core import augment
    from components.ingest.core import ingest
    from components.split.core import split
    from components.train.core import Places, train

    settings = (
        f"train.weights.resnet50={weights}",
        f"train.head_epochs={epochs}",
        f"train.batch_size={BATCH}",
        "augment.feature_views=1",
    )
    params = _params(folder, *settings)
    work = folder / "ours"
    cache = folder / "cache"
    shutil.rmtree(work, ignore_errors=True)
    if not warm:
        shutil.rmtree(cache, ignore_errors=True)

    def go() -> dict[str, Any]:
        began = time.perf_counter()
        dataset, splits, plan = work / "dataset", work / "splits", work / "plan"
        ingest(params.data, dataset, work / "state")
        split(dataset, params.split, splits)
        augment(dataset, splits, params.augment, params.mixup, plan)
        places, targets = Places(cache, work / "state"), (work / "model", work / "history")
        train(dataset, splits, plan, work / "masks", "resnet50", params.train, *targets, places=places)
        history = json.loads((work / "history" / "history.json").read_text())["epochs"]
        ended, left = time.perf_counter() - began, 0.0
        at = {}
        for row in reversed(history):  # what an epoch ended at: the time from it to the end is the time of those after it
            at[row["epoch"]] = ended - left
            left += row["seconds"]
        return {"epochs": [{"at": at[row["epoch"]], "score": row["validation_balanced_accuracy"]} for row in history]}

    return go


def newcomer(folder: Path, weights: Path, epochs: int) -> Any:
    """As Keras' guide to transfer learning has it; validation images are predicted after each epoch, as fit would."""
    import keras
    import numpy as np
    from sklearn.metrics import balanced_accuracy_score

    def go() -> dict[str, Any]:
        began = time.perf_counter()
        keras.utils.set_random_seed(20240101)
        where = {"image_size": (SIZE, SIZE), "batch_size": BATCH, "verbose": False}
        train = keras.utils.image_dataset_from_directory(folder / "classes" / "train", seed=20240101, **where)
        validation = keras.utils.image_dataset_from_directory(folder / "classes" / "validation", shuffle=False, **where)
        labels = np.concatenate([batch for _, batch in validation])
        base = keras.applications.ResNet50(weights=str(weights), include_top=False, input_shape=(SIZE, SIZE, 3))
        base.trainable = False
        inputs = keras.Input((SIZE, SIZE, 3))
        x = base(keras.applications.resnet.preprocess_input(inputs), training=False)
        x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
        model = keras.Model(inputs, keras.layers.Dense(len(train.class_names), activation="softmax")(x))
        model.compile(keras.optimizers.Adam(0.001), "sparse_categorical_crossentropy", metrics=["accuracy"])
        told = []
        for _ in range(epochs):
            model.fit(train, epochs=1, verbose=0)
            score = balanced_accuracy_score(labels, model.predict(validation, verbose=0).argmax(axis=1))
            told.append({"at": time.perf_counter() - began, "score": score})
        return {"epochs": told}

    return go


CONTESTANTS = {work.__name__: work for work in (newcomer, ours, warm)}


def compare(folder: Path, weights: Path, epochs: int) -> dict[str, Any]:
    """Each once, in turn; time to target is when the newcomer's best balanced accuracy was reached first."""
    arguments = ("--folder", str(folder), "--weights", str(weights), "--epochs", str(epochs))
    found = {name: run(__file__, "--contestant", name, *arguments) for name in CONTESTANTS}
    best = {name: max(row["score"] for row in one["result"]["epochs"]) for name, one in found.items()}
    target = best["newcomer"]
    reached = {
        name: next((row["at"] for row in one["result"]["epochs"] if row["score"] >= target), None)
        for name, one in found.items()
    }
    seconds = {name: one["seconds"] for name, one in found.items()}
    ratios = {
        "newcomer / ours, seconds": seconds["newcomer"] / seconds["ours"],
        "newcomer / warm, seconds": seconds["newcomer"] / seconds["warm"],
        "ours / newcomer, peak memory": found["ours"]["peak_anonymous_mib"] / found["newcomer"]["peak_anonymous_mib"],
    }
    if reached["ours"]:
        ratios["newcomer / ours, seconds to the newcomer's best"] = reached["newcomer"] / reached["ours"]
    return {
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "epochs": epochs,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seconds_to_the_newcomers_best": {name: round(value, 1) if value else "not reached" for name, value in reached.items()},
        "balanced_accuracy": {name: round(value, 4) for name, value in best.items()},
        "peak_anonymous_mib": {name: one["peak_anonymous_mib"] for name, one in found.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "differences": {"ours - newcomer, balanced accuracy": round(best["ours"] - best["newcomer"], 4)},
        "bounds": LEAST,
    }


def main() -> int:
    """Print the comparison; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="ResNet50's 'notop' .h5 of keras.applications")
    parser.add_argument("--source", type=Path, default=HAM10000, help="images in HAM10000's layout (default: ../shared's)")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    weights = options.weights.resolve()
    if options.contestant:
        contestant(CONTESTANTS[options.contestant](options.folder, weights, options.epochs))
        return 0
    with tempfile.TemporaryDirectory(prefix="dermaflow-bench-") as scratch:
        lay_out(options.source, options.images, Path(scratch))
        told = compare(Path(scratch), weights, options.epochs)
    figures = told["ratios"] | told["differences"]
    told["missed"] = [name for name, least in LEAST.items() if figures[name] < least]
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"ResNet50, frozen, {options.images} images, {options.epochs} epochs, on {told['machine']}")
        parts = ("seconds", "seconds_to_the_newcomers_best", "balanced_accuracy", "peak_anonymous_mib", "ratios", "differences")
        tell(told, parts, LEAST, {})
    return 1 if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
