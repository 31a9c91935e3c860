"""Data that grow after a run: the next one goes on from its splits by itself, and so does that one's repetition."""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from pathlib import Path

import pandas as pd

from components.register.core import Evidence, register
from dermaflow.artifacts import read_json
from dermaflow.params import load_params
from dermaflow.phantom import draw_phantoms
from pipelines import preflight
from tests.sources import METADATA_FILE
from tests.workspace import TINY, Workspace, sets

SMALL = (*TINY, "train.architectures=[cnn]", "explain.images=2")


def grow(source: Path, scratch: Path) -> None:
    """Put 42 more phantoms, of other lesions, into a workspace's source."""
    draw_phantoms(scratch, images=42, seed=8, size=(200, 150))
    known = source.resolve()
    source.unlink()
    shutil.copytree(known, source)
    for path in scratch.rglob("PHI_*"):
        shutil.copy(path, source / path.parent.name / path.name.replace("PH", "NEW"))
    more = pd.read_csv(scratch / METADATA_FILE, dtype=str, keep_default_na=False)
    for name in ("image_id", "lesion_id"):
        more[name] = more[name].str.replace("PH", "NEW")
    table = pd.read_csv(source / METADATA_FILE, dtype=str, keep_default_na=False)
    pd.concat([table, more]).to_csv(source / METADATA_FILE, index=False)


def test_a_run_on_grown_data_keeps_every_side_and_numbers_the_test_set_anew(
    continued: Workspace, finished_evidence: Evidence, tmp_path: Path
):
    values = (*SMALL, f"register.tracking_uri={continued.registry}")
    params = load_params("phantom", values, root=continued.path)
    register(finished_evidence, params.register_, tmp_path / "registration")
    grow(continued.path / "data" / "phantom", tmp_path / "more")
    second = continued.json("run", "--profile", "phantom", *sets(*values))

    run = continued.path / "runs" / second["run_id"]
    before, after = (pd.read_parquet(path / "splits.parquet") for path in (finished_evidence.splits, run / "split/splits"))
    both = before.merge(after, on="image_id", suffixes=("", "_now"))
    assert len(both) == len(before) < len(after)
    assert (both["split"] == both["split_now"]).all()
    assert set(after.loc[after["split"] == "test", "test_set"]) == {1, 2}
    tags = continued.versions()[0]["tags"]
    assert tags["dermaflow.test_set.version"] == "2"
    assert tags["dermaflow.splits.previous"].startswith("sha256:")
    report = json.loads((run / "validate-splits/report/validation.json").read_text())
    assert [row["version"] for row in report["overview"]["splits: frozen"]] == [1]
    assert next(rule for rule in report["rules"] if rule["rule"] == "each earlier test set has its members still")["success"]
    gates = {gate["name"]: gate for gate in second["gates"]}
    assert gates["never_tested"]["verdict"] == "pass"
    page = (run / "report.html").read_text()
    assert "Test set 2:" in page
    assert "goes on from test set 1" in page

    with chdir(continued.path):  # the same command again asks every step the same, and the cache answers: see test_run.py
        again = json.loads(json.dumps(preflight.arguments(params)))
    assert json.loads(again["previous"])["digest"] == tags["dermaflow.splits.previous"]
    assert again == read_json(run / "request.json")["arguments"]
