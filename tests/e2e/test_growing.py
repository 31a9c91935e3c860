"""Data that grow between two runs: the second goes on from the first one's splits by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd

from tests.sources import METADATA_FILE
from tests.workspace import TINY, Workspace, sets

SMALL = (*TINY, "train.architectures=[cnn]", "explain.images=2", "data.source=data/growing", "split.train=0.6",
         "split.validation=0.2", "split.test=0.2")  # fmt: skip


def lay_out(phantoms: Path, source: Path, lesions: set[str]) -> None:
    """A source with the images of some of the phantoms' lesions."""
    table = pd.read_csv(phantoms / METADATA_FILE, dtype=str, keep_default_na=False)
    kept = table[table["lesion_id"].isin(lesions)]
    shutil.copytree(phantoms, source, dirs_exist_ok=True)
    kept.to_csv(source / METADATA_FILE, index=False)
    for path in (*(source / "images").iterdir(), *(source / "masks").iterdir()):
        if path.stem.removesuffix("_segmentation") not in set(kept["image_id"]):
            path.unlink()


def splits_of(workspace: Workspace, run: dict) -> pd.DataFrame:
    return pd.read_parquet(workspace.path / "runs" / run["run_id"] / "split/splits/splits.parquet")


def test_a_run_on_grown_data_keeps_every_side_and_numbers_the_test_set_anew(workspace: Workspace, phantoms: Path):
    metadata = pd.read_csv(phantoms / METADATA_FILE, dtype=str)
    lesions = metadata.drop_duplicates("lesion_id").sort_values("lesion_id")
    arguments = ("run", "--profile", "phantom", *sets(*SMALL))
    lay_out(phantoms, workspace.path / "data/growing", set(lesions.groupby("dx").head(5)["lesion_id"]))
    first = workspace.json(*arguments)
    lay_out(phantoms, workspace.path / "data/growing", set(lesions["lesion_id"]))
    second = workspace.json(*arguments)

    before, after = splits_of(workspace, first), splits_of(workspace, second)
    both = before.merge(after, on="image_id", suffixes=("", "_now"))
    assert len(both) == len(before) < len(after)
    assert (both["split"] == both["split_now"]).all()
    assert set(after.loc[after["split"] == "test", "test_set"]) == {1, 2}
    tags = workspace.json("models", "--profile", "phantom")[0]["tags"]
    assert tags["dermaflow.test_set.version"] == "2"
    assert tags["dermaflow.splits.previous"].startswith("sha256:")
    report = json.loads((workspace.path / "runs" / second["run_id"] / "validate-splits/report/validation.json").read_text())
    assert [row["version"] for row in report["overview"]["splits: frozen"]] == [1]
    assert next(rule for rule in report["rules"] if rule["rule"] == "each earlier test set has its members still")["success"]
    gates = {gate["name"]: gate for gate in second["gates"]}
    assert gates["never_tested"]["verdict"] == "pass"
    page = (workspace.path / "runs" / second["run_id"] / "report.html").read_text()
    assert "Test set 2:" in page
    assert "goes on from test set 1" in page

    third = workspace.json(*arguments)
    worked = {task["task"] for task in third["tasks"] if not task["cached"]}
    assert worked == {"compare", "register", "promote", "notify"}
