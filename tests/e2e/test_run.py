"""The main job, as a user runs it: on synthetic images, with all architectures, in local processes."""

from __future__ import annotations

import json
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.results import run_folder, summarise
from tests.s3_server import S3Server
from tests.workspace import TINY, Workspace, sets

Finished = tuple[Workspace, dict[str, Any]]


def test_every_architecture_is_judged_and_random_backbones_are_marked(finished: Finished):
    _, result = finished
    by_name = {entry["name"]: entry for entry in result["architectures"]}
    assert set(by_name) == {"cnn", "resnet50", "xception"}
    for name, entry in by_name.items():
        for part in ("validation", "test"):
            figure = entry[part]["balanced_accuracy"]
            assert 0 <= figure["low"] <= figure["estimate"] <= figure["high"] <= 1
        assert entry["pipeline_check"] == (name != "cnn")


def test_the_candidate_is_registered_as_challenger_and_refused_for_being_synthetic(finished: Finished):
    workspace, result = finished
    assert result["outcome"] == "refused"
    verdicts = {gate["name"]: gate["verdict"] for gate in result["gates"]}
    assert verdicts["not_synthetic"] == "fail"
    assert verdicts["leakage"] == verdicts["lesion_split"] == verdicts["data_validation"] == "pass"
    versions = workspace.json("models", "--profile", "phantom")
    assert [(v["name"], v["version"], v["aliases"]) for v in versions] == [("dermaflow-candidate", 1, ["challenger"])]
    assert versions[0]["tags"]["dermaflow.synthetic"] == "true"


def test_every_artifact_lies_under_its_step(finished_run: Path):
    expected = {
        "ingest/dataset/manifest.parquet", "ingest/dataset/shard-00000.npy", "validate/report/data_docs/index.html",
        "validate-splits/report/data_docs/index.html", "validate-masks-and-plan/report/data_docs/validations/plan.html",
        "validate-predictions/report/validation.json",
        "segment/masks/masks.parquet", "split/splits/splits.parquet", "augment/plan/plan.parquet",
        "train-cnn/model/model.keras", "train-resnet50/history/history.parquet",
        "evaluate-xception/evaluation/predictions.parquet", "select/selection/selection.json",
        "explain/explanation/gallery.png", "compare/comparison/comparison.json", "split/splits/leakage.png",
        "register/registration/registration.json",
        "promote/decision/decision.json", "notify/notification/notification.json", "report.html", "run.log",
    }  # fmt: skip
    assert {name for name in expected if not (finished_run / name).exists()} == set()
    assert json.loads((finished_run / "notify/notification/notification.json").read_text())["state"] == "SUCCEEDED"


def test_no_lesion_is_on_two_sides_and_only_train_images_are_planned(finished_run: Path):
    splits = pd.read_parquet(finished_run / "split/splits/splits.parquet")
    assert splits.groupby("lesion_id")["split"].nunique().max() == 1
    plan = pd.read_parquet(finished_run / "augment/plan/plan.parquet")
    assert set(plan["image_id"]) == set(splits.loc[splits["split"] == "train", "image_id"])
    predictions = pd.read_parquet(finished_run / "evaluate-cnn/evaluation/predictions.parquet")
    assert not set(predictions["image_id"]) & set(plan["image_id"])


def test_printed_figures_are_those_of_the_predictions(finished: Finished, finished_run: Path):
    from sklearn.metrics import balanced_accuracy_score

    _, result = finished
    for entry in result["architectures"]:
        table = pd.read_parquet(finished_run / f"evaluate-{entry['name']}/evaluation/predictions.parquet")
        table = table[table["split"] == "test"]
        columns = [name for name in table.columns if name.startswith("logit_")]
        predicted = np.array([name.removeprefix("logit_") for name in columns])[table[columns].to_numpy().argmax(axis=1)]
        assert entry["test"]["balanced_accuracy"]["estimate"] == pytest.approx(
            balanced_accuracy_score(table["label"], predicted)
        )


def test_a_second_run_trains_nothing_registers_nothing_new_and_ends_with_a_table_and_paths(finished: Finished):
    workspace, first = finished
    started = time.monotonic()
    done = workspace.run("run", "--profile", "phantom", *sets(*TINY))
    assert time.monotonic() - started < 120  # the bound of 60 s is proved at full size by `make prove`
    assert done.returncode == 0, done.stderr
    with chdir(workspace.path):
        again = summarise(run_folder("latest"))  # what --json prints
    cached = {task["task"]: task["cached"] for task in again["tasks"]}
    assert {task for task, hit in cached.items() if not hit} == {"compare", "register", "promote", "notify"}
    assert again["candidate"]["version"] == first["candidate"]["version"]
    assert again["run_id"] != first["run_id"]
    assert (workspace.path / "runs/latest/train-cnn/model/model.keras").exists()
    parameters = f"{first['architectures'][0]['parameters']:,}"
    for text in ("pipeline check, not a result", parameters, "Segmentation: mean Dice", "dermaflow-candidate version 1",
                 "refused by not_synthetic", "report.html", "mlflow ui --backend-store-uri sqlite:///"):  # fmt: skip
        assert text in done.stdout, text
    assert "cached" in done.stderr
    assert "train-cnn" in done.stderr


def test_a_registered_and_a_saved_model_judge_new_images_wherever_they_lie(
    finished: Finished, finished_run: Path, s3: S3Server, tmp_path: Path
):
    workspace, _ = finished
    assert workspace.run("data", "phantom", str(tmp_path / "new"), "--images", "28", "--seed", "99").returncode == 0
    judged = workspace.json(
        "evaluate", "dermaflow-candidate@challenger", str(tmp_path / "new"), *sets("evaluate.bootstrap=200")
    )
    assert (judged["n_images"], judged["left_out"]) == (28, 0)
    assert set(judged["metrics"]["balanced_accuracy"]) == {"estimate", "low", "high"}
    own = json.loads((finished_run / "select/evaluation/metrics.json").read_text())
    assert judged["thresholds"] == pytest.approx(own["thresholds"], rel=1e-3)

    s3.make_bucket("elsewhere")
    s3.upload(tmp_path / "new", "elsewhere", "new")
    saved = workspace.run(
        "evaluate", "runs/latest/select/candidate", "s3://elsewhere/new", "--json", *sets("evaluate.bootstrap=200"),
        **s3.environment,
    )  # fmt: skip
    assert saved.returncode == 0, saved.stderr
    assert json.loads(saved.stdout)["metrics"] == judged["metrics"]


def test_a_model_does_not_judge_what_it_was_made_with_unless_that_is_left_out(finished: Finished, finished_run: Path):
    workspace, _ = finished
    splits = pd.read_parquet(finished_run / "split/splits/splits.parquet")
    seen, test = int(splits["split"].isin(["train", "validation"]).sum()), int((splits["split"] == "test").sum())
    refused = workspace.run("evaluate", "dermaflow-candidate@challenger", "data/phantom")
    assert refused.returncode == 2
    assert f"{seen} of 84 images" in refused.stderr
    assert "--leave-out-seen" in refused.stderr
    assert refused.stdout == ""
    rest = workspace.run("evaluate", "runs/latest/train-cnn/model", "data/phantom", "--leave-out-seen", "--out", "external",
                         *sets("evaluate.bootstrap=200"))  # fmt: skip
    assert rest.returncode == 0, rest.stderr
    for text in ("balanced accuracy", "melanoma", "expected calibration error", "subgroup", f"{test} synthetic images",
                 f"others of their lesions: {84 - test} images", "Evaluation: external"):  # fmt: skip
        assert text in rest.stdout, text
    own, again = (pd.read_parquet(folder / "predictions.parquet").set_index("image_id")
                  for folder in (finished_run / "evaluate-cnn/evaluation", workspace.path / "external"))  # fmt: skip
    columns = [name for name in again.columns if name.startswith("logit_")]
    np.testing.assert_allclose(own.loc[again.index, columns], again[columns], atol=1e-4)
