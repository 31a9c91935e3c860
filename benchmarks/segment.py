"""The segment step against the plain K-means recipe, in time, and against the experts' masks, in overlap.

    python benchmarks/segment.py [--source DIR] [--plain 200] [--json]

`--source` is a folder in HAM10000's layout with expert masks: by default all of HAM10000 in ../shared, or drawn lesions where
that is not at hand. It is ingested once; then each contestant works in a process of its own, seconds without imports.

    segment    components.segment, the whole step on all images: masks, Dice, Jaccard, intervals, tables, gallery, seal
    plain      for --plain of the images: scikit-learn's KMeans(n_clusters=2, n_init=10) on the RGB of every pixel, the darker
               cluster, morphological opening and closing (the study's recipe as a newcomer would write it), on one core

The lesions are halved by the parity of SHA-256 of the lesion id. Constants were chosen on the even half alone; the bounds
are on the odd half, and both halves and the whole are told. `ms an image and core` is seconds times cores over images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import SHARED, contestant, run, tell

from dermaflow.lineage import machine

HAM10000 = SHARED / "data" / "ham10000"
LEAST = {"mean Dice, untouched half": 0.84, "mean Dice over classes, untouched half": 0.78, "plain / segment": 8.0}
MOST = {"fallback, untouched half": 0.02, "ms an image and core": 10.0}
_PLAIN_OPENING = 5  # pixels


def lay_out(source: Path | None, folder: Path) -> None:
    """The ingested Dataset of a source."""
    from components.ingest.core import ingest
    from dermaflow.params import load_params

    if source is None and not HAM10000.is_dir():
        from dermaflow.phantom import draw_phantoms

        source = folder / "drawn"
        draw_phantoms(source, images=420, seed=7)
    params = load_params("default", [f"data.source={source or HAM10000}"])
    ingest(params.data, folder / "dataset", folder / "state")


def segment(folder: Path, _: int) -> Any:
    """Ours, as the pipeline's step does it."""
    from components.segment.core import segment as work
    from dermaflow.params import load_params

    params = load_params("default")
    shutil.rmtree(folder / "masks", ignore_errors=True)
    return lambda: work(folder / "dataset", params.segment, folder / "masks")["n_images"]


def plain(folder: Path, images: int) -> Any:
    """The study's recipe; returns the mean Dice against the experts' masks, and the number of images."""
    import cv2
    import numpy as np
    from sklearn.cluster import KMeans

    from components.segment.core import overlap
    from dermaflow.dataset import Dataset

    dataset = Dataset.open(folder / "dataset")
    rows = np.unique(np.linspace(0, len(dataset.manifest) - 1, images).astype(np.int64))
    pictures, truths = dataset.images(rows), dataset.truth(rows)
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_PLAIN_OPENING, _PLAIN_OPENING))

    def go() -> Any:
        dice = []
        for picture, truth in zip(pictures, truths, strict=True):
            pixels = picture.reshape(-1, 3).astype(np.float32)
            found = KMeans(n_clusters=2, n_init=10, random_state=0).fit(pixels)
            darker = found.cluster_centers_.sum(axis=1).argmin()
            mask = (found.labels_ == darker).reshape(picture.shape[:2]).astype(np.uint8)
            mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_OPEN, element), cv2.MORPH_CLOSE, element)
            dice.append(overlap(mask, truth)[0])
        return {"images": len(rows), "mean_dice": float(np.mean(dice))}

    return go


CONTESTANTS = {work.__name__: work for work in (segment, plain)}


def quality(folder: Path) -> dict[str, dict[str, float]]:
    """Dice of the masks for both halves of the lesions and for all."""
    import pandas as pd

    from dermaflow.dataset import Dataset

    masks = pd.read_parquet(folder / "masks" / "masks.parquet")
    rows = Dataset.open(folder / "dataset").columns("image_id", "lesion_id", "label").merge(masks, on="image_id")
    odd = rows["lesion_id"].map(lambda lesion: int(hashlib.sha256(lesion.encode()).hexdigest(), 16) % 2 == 1)
    told = {}
    for name, part in (("tuned half", rows[~odd]), ("untouched half", rows[odd]), ("all", rows)):
        classes = part.groupby("label")["dice"].mean()
        told[name] = {
            "images": len(part),
            "lesions": int(part["lesion_id"].nunique()),
            "mean Dice": round(float(part["dice"].mean()), 4),
            "mean Dice over classes": round(float(classes.mean()), 4),
            "mean Jaccard": round(float(part["jaccard"].mean()), 4),
            "fallback": round(float(part["fallback"].mean()), 4),
            "mean Dice without fallbacks": round(float(part.loc[~part["fallback"], "dice"].mean()), 4),
            **{str(label): round(float(dice), 4) for label, dice in classes.items()},
        }
    return told


def compare(folder: Path, images: int) -> dict[str, Any]:
    """Run everyone, ours also on one core, and look at the masks."""
    cores = len(os.sched_getaffinity(0))
    plan = (("plain", 1), ("segment", 1), ("segment", cores))
    found = {
        entry: run(__file__, "--contestant", entry[0], "--plain", str(images), "--folder", str(folder), cores=entry[1])
        for entry in plan
    }
    ours, alone, other = found["segment", cores], found["segment", 1], found["plain", 1]
    halves = quality(folder)
    untouched = halves["untouched half"]
    milliseconds = {
        "segment": 1000 * ours["seconds"] * cores / ours["result"],
        "segment, one core": 1000 * alone["seconds"] / alone["result"],
        "plain": 1000 * other["seconds"] / other["result"]["images"],
    }
    return {
        "machine": machine(),
        "cores": cores,
        "halves": halves,
        "plain_dice": round(other["result"]["mean_dice"], 4),
        "milliseconds_an_image_and_core": {name: round(value, 2) for name, value in milliseconds.items()},
        "peak_anonymous_mib": {"segment": ours["peak_anonymous_mib"], "plain": other["peak_anonymous_mib"]},
        "figures": {
            "mean Dice, untouched half": untouched["mean Dice"],
            "mean Dice over classes, untouched half": untouched["mean Dice over classes"],
            "fallback, untouched half": untouched["fallback"],
            "ms an image and core": round(milliseconds["segment"], 2),
        },
        "ratios": {
            "plain / segment": round(milliseconds["plain"] / milliseconds["segment"], 2),
            "plain / segment, one core each": round(milliseconds["plain"] / milliseconds["segment, one core"], 2),
            f"segment, {cores} cores / 1 core": round(alone["seconds"] / ours["seconds"], 2),
        },
        "bounds": {"at least": LEAST, "at most": MOST},
    }


def main() -> int:
    """Print the comparison; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder in HAM10000's layout with expert masks")
    parser.add_argument("--plain", type=int, default=200, help="images for the plain recipe (default: 200)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contestant(CONTESTANTS[options.contestant](options.folder, options.plain))
        return 0
    with tempfile.TemporaryDirectory(prefix="dermaflow-bench-") as scratch:
        lay_out(options.source, Path(scratch))
        told = compare(Path(scratch), options.plain)
    values = {**told["figures"], **told["ratios"]}
    told["missed"] = [name for name, least in LEAST.items() if values[name] < least]
    told["missed"] += [name for name, most in MOST.items() if values[name] > most]
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"segmentation on {told['machine']}\n")
        for name, half in told["halves"].items():
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in half.items()))
        print(f"plain recipe: mean Dice {told['plain_dice']}")
        tell(told, ("figures", "milliseconds_an_image_and_core", "peak_anonymous_mib", "ratios"), LEAST, MOST)
    return 1 if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
