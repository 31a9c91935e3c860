"""What 100 more images cost, against the whole ingest: seconds, processor seconds, files written, bytes pushed.

    python benchmarks/incremental.py [--source DIR] [--base 50000] [--push] [--json]

The source's images are repeated to `--base` with changed bytes (a comment in each JPEG), then 100 more are added. Each
ingest runs in a process of its own; seconds are without imports. The first begins once the source has lain longer than
RACY_SECONDS, as real ones have: a file younger than that is read again by the next ingest. With `--push` the dataset is
also tracked by DVC and pushed to a real S3 server, before and after.

    full       ingest of `--base` images from nothing
    growth     ingest of `--base` + 100 images, going on from that
    unchanged  ingest once more: what looking costs
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pandas as pd
from measured import ROOT, SHARED, contestant, run

from components.ingest.fingerprints import RACY_SECONDS
from dermaflow.lineage import machine

ADDED = 100
MOST_SHARE = 0.05  # of the full ingest's work, from 50,000 images on
MOST_SECONDS = 3.0  # for 100 images on top of 10,015
REAL = SHARED / "data" / "ham10000"


def lay_out(originals: Path, base: int, folder: Path) -> None:
    """A source of `base` images: HAM10000's own, without masks, and from the second round on with a comment in each file."""
    (metadata,) = originals.glob("*metadata*.csv")
    table = pd.read_csv(metadata, dtype=str, keep_default_na=False)
    files = {path.stem: path for path in originals.rglob("*.jpg")}
    rounds = [table.assign(number=number) for number in range(-(-(base + ADDED) // len(table)))]
    rows = pd.concat(rounds, ignore_index=True).iloc[: base + ADDED]
    rows["origin"] = rows["image_id"]
    rows["image_id"] += rows["number"].map(lambda number: f"_{number}" if number else "")
    rows["lesion_id"] += rows["number"].map(lambda number: f"_{number}" if number else "")
    (folder / "source" / "images").mkdir(parents=True)
    (folder / "more").mkdir()
    for place, row in enumerate(rows.itertuples()):
        data = files[row.origin].read_bytes()
        comment = f"{row.image_id}".encode()
        if row.number:
            data = data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
        (folder / ("source/images" if place < base else "more") / f"{row.image_id}.jpg").write_bytes(data)
    rows = rows[table.columns]
    rows.iloc[:base].to_csv(folder / "source" / "HAM10000_metadata.csv", index=False)
    rows.to_csv(folder / "grown.csv", index=False)


def grow(folder: Path) -> None:
    """Add the 100 images to the source."""
    for path in (folder / "more").iterdir():
        shutil.copy2(path, folder / "source" / "images" / path.name)
    shutil.copy(folder / "grown.csv", folder / "source" / "HAM10000_metadata.csv")


def ingest(folder: Path) -> Any:
    """The step, going on from what is there."""
    from components.ingest.core import ingest as work
    from dermaflow.params import load_params

    os.environ["DERMAFLOW_HOME"] = str(folder / "home")
    params = load_params("default", [f"data.source={folder / 'source'}"])

    def go() -> Any:
        processor = time.process_time()
        info = work(params.data, folder / "dataset", folder / "home" / "state" / "ingest")
        return {
            "images": info["counts"]["images"],
            "processor_seconds": time.process_time() - processor,
            "content": info["content_digest"],
        }

    return go


def arrays(folder: Path) -> dict[str, str]:
    """Digest of each array file of the dataset."""
    seal = json.loads((folder / "dataset" / "artifact.json").read_text())
    return {name: digest for name, digest in seal["files"].items() if name.endswith(".npy")}


def measure(folder: Path, base: int, *, push: bool) -> dict[str, Any]:
    """Full ingest, growth, and once more."""
    time.sleep(RACY_SECONDS)
    full = run(__file__, "--contestant", "--folder", str(folder))
    before = arrays(folder)
    pushes = _pushes(folder) if push else repeat(None)
    first_push = next(pushes)
    grow(folder)
    growth = run(__file__, "--contestant", "--folder", str(folder))
    after = arrays(folder)
    second_push = next(pushes)
    unchanged = run(__file__, "--contestant", "--folder", str(folder))
    assert growth["result"]["images"] == base + ADDED
    assert unchanged["result"]["content"] == growth["result"]["content"]
    rewritten = sorted(name for name in before if after.get(name) != before[name])
    written = sorted(set(after) - set(before))
    return {
        "base": base,
        "added": ADDED,
        "machine": machine(),
        "full": full,
        "growth": growth,
        "unchanged": unchanged,
        "rewritten_array_files": rewritten,
        "new_array_files": written,
        "new_array_bytes": sum((folder / "dataset" / name).stat().st_size for name in written),
        "pushed_bytes": {"first": first_push, "growth": second_push} if push else None,
        "ratios": {
            "growth / full, seconds": round(growth["seconds"] / full["seconds"], 4),
            "growth / full, processor": round(growth["result"]["processor_seconds"] / full["result"]["processor_seconds"], 4),
            **({"pushed growth / pushed first": round(second_push / first_push, 4)} if first_push and second_push else {}),
        },
    }


def _pushes(folder: Path) -> Iterator[int]:
    """Track the dataset by DVC and push it to a real S3 server; yields the bytes that came to lie there, each time."""
    from tests.s3_server import s3_server
    from tests.versions import Repository

    with s3_server(folder / "s3") as server:
        repository = Repository.make(folder, server)
        while True:
            repository.run("dvc add --quiet dataset")
            yield sum(repository.push().values())


def missed(told: dict[str, Any]) -> list[str]:
    """Which bounds do not hold."""
    found = []
    if told["rewritten_array_files"]:
        found.append(f"array files that were there changed: {', '.join(told['rewritten_array_files'])}")
    if (
        told["base"] >= 50_000
        and max(told["ratios"]["growth / full, seconds"], told["ratios"]["growth / full, processor"]) > MOST_SHARE
    ):
        found.append(f"growth costs more than {MOST_SHARE:.0%} of the whole")
    if told["base"] <= 10_015 and told["growth"]["seconds"] > MOST_SECONDS:
        found.append(f"growth costs more than {MOST_SECONDS:g} s")
    if told["pushed_bytes"] and told["pushed_bytes"]["growth"] > 1.2 * told["new_array_bytes"] + 20e6:
        found.append("more was pushed than the new shards and the tables")
    return found


def main() -> int:
    """Print what was measured; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=REAL, help="HAM10000's layout (default: ../shared's)")
    parser.add_argument("--base", type=int, default=50_000)
    parser.add_argument("--push", action="store_true", help="also push to a real S3 server by DVC")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--contestant", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contestant(ingest(options.folder))
        return 0
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="dermaflow-bench-") as scratch:
        lay_out(options.source, options.base, Path(scratch))
        told = measure(Path(scratch), options.base, push=options.push)
    told["missed"] = missed(told)
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"{ADDED} images added to {told['base']:,} on {told['machine']}\n")
        for name in ("full", "growth", "unchanged"):
            one = told[name]
            print(
                f"  {name:<10} {one['seconds']:8.2f} s  {one['result']['processor_seconds']:8.2f} processor s  "
                f"{one['peak_anonymous_mib']:7.0f} MiB"
            )
        for name, value in told["ratios"].items():
            print(f"  {name:<30} {value}")
        print(f"  new array files: {', '.join(told['new_array_files'])}")
        print(f"  array files that changed: {', '.join(told['rewritten_array_files']) or 'none'}")
        if told["pushed_bytes"]:
            print(f"  bytes pushed: first {told['pushed_bytes']['first']:,}, growth {told['pushed_bytes']['growth']:,}")
        print("missed: " + "; ".join(told["missed"]) if told["missed"] else "every bound holds")
    return 1 if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
