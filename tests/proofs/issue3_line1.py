"""Issue 3, line 1: all of HAM10000 ingested, validated and split by one command; memory flat at ten times as many images."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from pathlib import Path

from tests.proofs.clone import SHARED
from tests.proofs.measuring import timed
from tests.workspace import DERMAFLOW, make_workspace

BOUND = "at most 90 s on 2 cores; peak RssAnon of the process tree at most 900 MB; at 100,000 images at most 1.3 times that"
REAL = SHARED / "data" / "ham10000"
TEN = 10  # rounds: 100,150 repeated images


def prove() -> tuple[str, bool]:
    """`dermaflow data prepare` on the real images, with and without masks, and on ten times as many."""
    if not REAL.exists():
        return "the real images (../shared) are not here", False
    with tempfile.TemporaryDirectory(prefix="dermaflow-proof-") as scratch:
        folder = Path(scratch)
        seconds, mib, images, largest = prepare(REAL, folder / "one")
        repeat(REAL, TEN, folder / "source")
        seconds_ten, mib_ten, images_ten, _ = prepare(folder / "source", folder / "ten")
    megabytes = mib * 1.048576
    return (
        f"{images:,} images in {seconds:.1f} s, peak {megabytes:.0f} MB; {images_ten:,} images in {seconds_ten:.0f} s, peak "
        f"{mib_ten / mib:.2f} times that; test part {largest}"
    ), images == 10_015 and seconds <= 90 and megabytes <= 900 and mib_ten <= 1.3 * mib and images_ten >= 100_000


def prepare(source: Path, folder: Path) -> tuple[float, float, int, str]:
    """Seconds, peak anonymous MiB, number of images, and what the split says of its test part."""
    workspace = make_workspace(folder).path
    command = [str(DERMAFLOW), "data", "prepare", "--set", f"data.source={source}", "--set", "data.max_reject_share=0"]
    seconds, mib, done = timed(command, workspace)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((workspace / "artifacts" / "splits" / "splits.json").read_text())
    images = sum(part["images"] for part in told["counts"].values())
    return seconds, mib, images, f"{told['counts']['test']['images']} images"


def repeat(source: Path, rounds: int, folder: Path) -> None:
    """A source with every image of another, `rounds` times, each round as lesions of its own."""
    (metadata,) = source.glob("*metadata*.csv")
    with metadata.open() as file:
        rows = list(csv.DictReader(file))
    files = {path.stem: path for path in source.rglob("*.jpg")}
    (folder / "images").mkdir(parents=True)
    with (folder / metadata.name).open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        for number in range(rounds):
            for row in rows:
                image_id = f"{row['image_id']}_{number}"
                table.writerow({**row, "image_id": image_id, "lesion_id": f"{row['lesion_id']}_{number}"})
                try:
                    os.link(files[row["image_id"]], folder / "images" / f"{image_id}.jpg")
                except OSError:
                    shutil.copyfile(files[row["image_id"]], folder / "images" / f"{image_id}.jpg")
