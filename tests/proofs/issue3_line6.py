"""Issue 3, line 6: bad metadata of a large source is told within seconds, with rows and rule."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from tests.proofs.clone import SHARED
from tests.proofs.measuring import timed
from tests.workspace import DERMAFLOW, make_workspace

BOUND = (
    "10,015 images with every row doubled, ids at missing files, or a lesion of two diagnoses: dermaflow validate exits 1 and "
    "names rows and rule within 10 s, imports included"
)
REAL = SHARED / "data" / "ham10000"


def doubled(table: pd.DataFrame) -> pd.DataFrame:
    """Every row twice."""
    return pd.concat([table, table])


def missing(table: pd.DataFrame) -> pd.DataFrame:
    """A tenth of the ids at files that are not there."""
    return table.assign(image_id=table["image_id"].where(table.index % 10 != 0, "GONE_" + table["image_id"]))


def two_diagnoses(table: pd.DataFrame) -> pd.DataFrame:
    """One lesion with two images of different classes."""
    lesion = table["lesion_id"].value_counts().index[0]
    first = table.index[table["lesion_id"] == lesion][0]
    table.loc[first, "dx"] = "mel" if table.loc[first, "dx"] != "mel" else "nv"
    return table


def prove() -> tuple[str, bool]:
    """All three, by the command."""
    if not REAL.exists():
        return "the real images (../shared) are not here", False
    told, passed = [], True
    with tempfile.TemporaryDirectory(prefix="dermaflow-proof-") as scratch:
        for spoil in (doubled, missing, two_diagnoses):
            seconds, code, rules, rows = validate(spoil, Path(scratch, spoil.__name__))
            told.append(f"{spoil.__name__} {seconds:.1f} s, exit {code}: {'; '.join(rules)} (first row {rows[:1]})")
            passed &= seconds <= 10 and code == 1 and bool(rules) and bool(rows)
    return " | ".join(told), passed


def validate(spoil: Callable[[pd.DataFrame], pd.DataFrame], folder: Path) -> tuple[float, int, list[str], list[str]]:
    """Seconds, exit code, blocking rules that failed, and ids of rows that they name."""
    workspace = make_workspace(folder / "workspace").path
    source = folder / "source"
    source.mkdir()
    (source / "images").symlink_to(REAL / "images_224")
    table = pd.read_csv(REAL / "HAM10000_metadata.csv", dtype=str, keep_default_na=False)
    spoil(table).to_csv(source / "HAM10000_metadata.csv", index=False)
    seconds, _, done = timed([str(DERMAFLOW), "validate", str(source), "--json"], workspace)
    report = json.loads(done.stdout)
    failed = [rule for rule in report["rules"] if not rule["success"] and rule["level"] == "critical"]
    rows = [row["image_id"] for rule in failed for row in rule["rows"]]
    shutil.rmtree(folder)
    return seconds, done.returncode, [rule["rule"] for rule in failed], rows
