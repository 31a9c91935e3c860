"""Ingest against a newcomer's recipe, Keras' loader, and the bound that the decoder sets.

    python benchmarks/ingest.py [--source DIR] [--images 5000] [--json]

`--source` is a folder of JPEGs; they are repeated to `--images`. By default the full-size originals of ../shared, or drawn
ones where those are not at hand. All contestants read the same files, warm from the page cache, each in a process of
its own; seconds are without imports; the best of `--repeats` counts, contestants taken in turn.

    ingest     components.ingest: strict decoding, both hashes, properties, signatures, neighbours, manifest, fsync, seal
    newcomer   cv2.imread, cv2.resize, cv2.cvtColor, append; np.save at the end (the study's recipe)
    keras      keras.utils.image_dataset_from_directory, written to .npy
    bound      the same decoder and resize on the same bytes, already in memory, on all cores; the result is discarded
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measured import SHARED, contestant, run, tell

from dermaflow.lineage import machine

SIZE = 224
BOUNDS = {"ingest / newcomer": 1.7, "ingest / bound": 0.80}
ORIGINALS = SHARED / "data" / "isic_originals_600x450"


def lay_out(source: Path | None, images: int, folder: Path) -> None:
    """A source in HAM10000's layout, its images in class folders, as Keras wants them; files are linked, or copied."""
    from dermaflow.classes import HAM10000_CLASSES

    if source is None and not ORIGINALS.is_dir():
        from dermaflow.phantom import draw_phantoms

        draw_phantoms(folder / "drawn", images=min(images, 177), seed=7)
        source = folder / "drawn" / "images"
    files = sorted((source or ORIGINALS).glob("*.jpg"))
    if not files:
        raise SystemExit(f"error: --source {source}: holds no .jpg")
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for number in range(images):
        label = HAM10000_CLASSES[number % len(HAM10000_CLASSES)]
        place = folder / "source" / "images" / label / f"I{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(files[number % len(files)], place)
        except OSError:
            shutil.copyfile(files[number % len(files)], place)
        rows.append(f"L{number:06d},{place.stem},{label},histo,50,female,back")
    (folder / "source" / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")
    for path in (folder / "source").rglob("*.jpg"):  # into the page cache
        path.read_bytes()


def ingest(folder: Path) -> Any:
    """Ours, as the pipeline's step does it."""
    from components.ingest.core import ingest as work
    from dermaflow.params import load_params

    params = load_params("default", [f"data.source={folder / 'source'}", f"data.image_size={SIZE}"])
    target = folder / "dataset"
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(folder / "state", ignore_errors=True)

    def go() -> Any:
        return work(params.data, target, folder / "state")["counts"]["images"]

    return go


def newcomer(folder: Path) -> Any:
    """The study's recipe as a newcomer would write it."""
    import cv2
    import numpy as np

    paths = sorted((folder / "source").rglob("*.jpg"))

    def go() -> Any:
        images = []
        for path in paths:
            image = cv2.imread(str(path))
            image = cv2.resize(image, (SIZE, SIZE))
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            images.append(image)
        np.save(folder / "newcomer.npy", np.array(images))
        return len(images)

    return go


def keras(folder: Path) -> Any:
    """Keras' own loader."""
    import numpy as np
    from keras.utils import image_dataset_from_directory

    def go() -> Any:
        data = image_dataset_from_directory(
            folder / "source" / "images", image_size=(SIZE, SIZE), batch_size=32, shuffle=False, verbose=False
        )
        images = np.concatenate([batch.numpy().astype(np.uint8) for batch, _ in data])
        np.save(folder / "keras.npy", images)
        return len(images)

    return go


def bound(folder: Path) -> Any:
    """Decoder and resize alone."""
    import cv2

    from components.ingest.decode import scaled_pixels

    paths = sorted((folder / "source").rglob("*.jpg"))
    once = {path.stat().st_ino: path.read_bytes() for path in paths}
    data = [once[path.stat().st_ino] for path in paths]
    cv2.setNumThreads(1)

    def decode_chunk(chunk: list[bytes]) -> int:
        for encoded in chunk:
            scaled_pixels(encoded, SIZE, 10**9, "stretch")
        return len(chunk)

    def go() -> Any:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return sum(pool.map(decode_chunk, [data[start : start + 8] for start in range(0, len(data), 8)]))

    return go


CONTESTANTS = {work.__name__: work for work in (newcomer, keras, bound, ingest)}


def compare(folder: Path, images: int, repeats: int) -> dict[str, Any]:
    """Run everyone `repeats` times in turn, and some of them once on one core."""
    cores = len(os.sched_getaffinity(0))
    plan = [(name, cores) for name in CONTESTANTS] * repeats + [("ingest", 1), ("bound", 1), ("newcomer", 1)]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {entry: [] for entry in plan}
    for name, number in plan:
        measured = run(__file__, "--contestant", name, "--folder", str(folder), cores=number)
        assert measured["result"] == images, f"{name} gave {measured['result']} of {images} images"
        found[name, number].append(measured)
    speed = {entry: images / min(one["seconds"] for one in all_) for entry, all_ in found.items()}
    return {
        "images": images,
        "cores": cores,
        "machine": machine(),
        "images_per_second": {f"{name}, {number} cores": round(value, 1) for (name, number), value in speed.items()},
        "peak_anonymous_mib": {name: max(one["peak_anonymous_mib"] for one in found[name, cores]) for name in CONTESTANTS},
        "ratios": {
            "ingest / newcomer": round(speed["ingest", cores] / speed["newcomer", cores], 3),
            "ingest / keras": round(speed["ingest", cores] / speed["keras", cores], 3),
            "ingest / bound": round(speed["ingest", cores] / speed["bound", cores], 3),
            "ingest / newcomer, one core": round(speed["ingest", 1] / speed["newcomer", 1], 3),
            "ingest / bound, one core": round(speed["ingest", 1] / speed["bound", 1], 3),
            f"ingest, {cores} cores / 1 core": round(speed["ingest", cores] / speed["ingest", 1], 3),
        },
        "bounds": BOUNDS,
    }


def main() -> int:
    """Print the comparison; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder of JPEGs (default: ../shared's originals, else drawn ones)")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contestant(CONTESTANTS[options.contestant](options.folder))
        return 0
    with tempfile.TemporaryDirectory(prefix="dermaflow-bench-") as scratch:
        lay_out(options.source, options.images, Path(scratch))
        told = compare(Path(scratch), options.images, options.repeats)
    told["missed"] = [name for name, least in BOUNDS.items() if told["ratios"][name] < least]
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"{told['images']} images on {told['machine']}")
        tell(told, ("images_per_second", "peak_anonymous_mib", "ratios"), BOUNDS, {})
    return 1 if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
