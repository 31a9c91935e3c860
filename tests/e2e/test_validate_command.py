"""`dermaflow validate`, as CI runs it: bad metadata is told within seconds, artifacts find what they belong to.

Called within this process, for Great Expectations takes 3 s to import; test_command.py starts it as CI does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from dermaflow.artifacts import open_artifact
from tests.proofs.issue3_line6 import doubled, missing, two_diagnoses
from tests.workspace import ROOT, Workspace, sets

BAD = Callable[[pd.DataFrame], pd.DataFrame]


def spoil(workspace: Workspace, change: BAD) -> pd.DataFrame:
    """The phantoms with changed metadata, as the source `spoilt`; returns what the metadata were."""
    shutil.copytree((workspace.path / "data" / "phantom").resolve(), workspace.path / "spoilt")
    path = workspace.path / "spoilt" / "HAM10000_metadata.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(table.copy()).to_csv(path, index=False)
    return table


def failed(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {rule["rule"]: rule for rule in report["rules"] if not rule["success"]}


REFUSED = "at most a small share of the source is refused (validate.max_reject_share)"


@pytest.mark.parametrize(
    ("change", "blocks", "told"),
    [
        (doubled, REFUSED, "each image id stands in one metadata row"),
        (missing, REFUSED, "each metadata row has its image file"),
        (two_diagnoses, "one diagnosis for each lesion", None),
    ],
)
def test_bad_metadata_exits_1_and_names_rows_and_rule(workspace: Workspace, change: BAD, blocks, told):
    table = spoil(workspace, change)
    done = workspace.call("validate", "spoilt", "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["stage"] == "listing"
    rules = failed(report)
    assert rules[blocks]["level"] == "critical"
    ids = {row["image_id"].removeprefix("GONE_") for row in rules[blocks]["rows"]}
    assert ids
    assert ids <= set(table["image_id"])
    assert any(blocks in text for text in report["blocking"])
    if told:
        assert rules[told]["rows"]
        assert rules[told]["rows"][0]["detail"]
    page = (workspace.path / "validation" / "data_docs" / "validations" / "manifest.html").read_text()
    assert all(row["image_id"] in page for row in rules[blocks]["rows"])


def test_without_json_the_verdict_names_the_rows_too(workspace: Workspace):
    spoil(workspace, two_diagnoses)
    done = workspace.call("validate", "spoilt")
    assert done.returncode == 1
    assert "failed: one diagnosis for each lesion (" in done.stdout
    assert "PHI_" in done.stdout


def test_a_fault_that_only_pixels_show_is_found_at_the_second_stage(workspace: Workspace):
    table = spoil(workspace, lambda table: table)
    one = table.iloc[0]
    other = table[table["dx"] != one["dx"]].iloc[0]
    images = workspace.path / "spoilt" / "images"
    shutil.copy(images / f"{one['image_id']}.jpg", images / f"{other['image_id']}.jpg")
    done = workspace.call("validate", "spoilt", "--json", *sets("data.image_size=72"))
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["stage"] == "artifact"
    rows = failed(report)["identical pixels carry the same label"]["rows"]
    assert {row["image_id"] for row in rows} == {one["image_id"], other["image_id"]}


def test_each_artifact_of_a_run_is_judged_by_its_own_suite(finished, finished_run: Path):
    workspace, _ = finished
    artifacts = {
        "ingest/dataset": "manifest",
        "split/splits": "splits",
        "augment/plan": "plan",
        "segment/masks": "masks",
        "evaluate-cnn/evaluation": "predictions",
    }
    for place, suite in artifacts.items():
        report = workspace.called_json("validate", str(finished_run / place))
        assert report["success"]
        assert report["suite"] == suite


def test_a_reference_is_compared_with_or_refused(finished, finished_run: Path, tmp_path: Path):
    workspace, _ = finished
    dataset, splits = finished_run / "ingest/dataset", finished_run / "split/splits"
    report = workspace.called_json("validate", str(dataset), "--reference", str(dataset))
    assert {entry["verdict"] for entry in report["drift"]} == {"stable"}
    report = workspace.called_json("validate", str(splits), "--reference", str(splits))
    assert report["references"] == {str(splits): open_artifact(splits, "splits").digest}
    for arguments, said in {
        (str(dataset), "--reference", str(splits)): "is an artifact of kind 'splits'; expected 'dataset'",
        (str(splits), "--suite", "manifest"): "of kind 'splits', which suite 'manifest' can not judge; give a dataset",
        (str(dataset), "--suite", "manifst"): "unknown suite 'manifst'; allowed: manifest, masks, plan, predictions, splits",
        (str(finished_run / "segment/masks"), "--reference", str(dataset)): "suite 'masks' compares with nothing",
        (str(workspace.path / "data/phantom"), "--suite", "splits"): "is no finished artifact",
    }.items():
        done = workspace.call("validate", *arguments)
        assert done.returncode == 2, arguments
        assert said in " ".join(done.stderr.split())


def test_an_artifact_that_lies_alone_says_what_it_needs_and_takes_it(finished, finished_run: Path, tmp_path: Path):
    workspace, _ = finished
    alone = shutil.copytree(finished_run / "split/splits", tmp_path / "a" / "b" / "c" / "d" / "alone")
    done = workspace.call("validate", str(alone))
    assert done.returncode == 2
    assert "needs the dataset that" in " ".join(done.stderr.split())
    assert "--with" in done.stderr
    assert workspace.called_json("validate", str(alone), "--with", str(finished_run / "ingest/dataset"))["success"]


def test_ci_runs_when_data_parameters_or_suites_change_and_keeps_the_pages():
    workflow = yaml.safe_load((ROOT / ".github/workflows/data.yml").read_text())
    paths = workflow[True]["pull_request"]["paths"]  # YAML 1.1 takes `on` for a truth value
    assert {"**/*.dvc", "dvc.lock", "params.yaml", "params/**", "components/validate/**"} <= set(paths)
    steps = workflow["jobs"]["validate"]["steps"]
    assert any("dermaflow validate" in step.get("run", "") for step in steps)
    (upload,) = (step for step in steps if step.get("uses", "").startswith("actions/upload-artifact@"))
    assert upload["if"] == "${{ !cancelled() }}"
    assert workflow["permissions"] == {"contents": "read"}
    assert all("@v" in step["uses"] for step in steps if "uses" in step)
