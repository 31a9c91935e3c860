"""Folds, as a user asks for them: a model of each, judged together, in the answer, the report and the registry."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from dermaflow.registry import connect
from tests.e2e.test_report import SECTIONS, Page
from tests.workspace import TINY, Workspace, sets

SMALL = (*TINY, "split.folds=2", "train.architectures=[cnn]", "train.epochs=1", "train.batch_size=8", "data.image_size=48",
         "explain.images=2")  # fmt: skip
TOLD = ("train-cnn", "split-cnn-fold-1", "augment-cnn-fold-1", "train-cnn-fold-1", "evaluate-cnn-fold-1", "pool-cnn")


def test_folds_give_out_of_fold_results_beside_the_final_model(workspace: Workspace):
    arguments = ("run", "--profile", "phantom", *sets(*SMALL))
    result = workspace.json(*arguments)
    run = workspace.path / "runs" / result["run_id"]
    splits = pd.read_parquet(run / "split/splits/splits.parquet")
    found = pd.read_parquet(run / "pool-cnn/evaluation/predictions.parquet")
    test = set(splits.loc[splits["split"] == "test", "image_id"])

    (told,) = result["out_of_fold"]
    metrics = json.loads((run / "pool-cnn/evaluation/metrics.json").read_text())
    assert (told["architecture"], told["folds"], told["seed"]) == ("cnn", 2, 20240101)
    assert told["balanced_accuracy"] == metrics["test"]["overall"]["balanced_accuracy"]
    assert told["n_images"] == len(splits) - len(test) == (found["split"] == "test").sum()
    assert test.isdisjoint(found["image_id"])
    for fold in (0, 1):
        trained = pd.read_parquet(run / f"train-cnn-fold-{fold}/model/trained_on.parquet")
        judged = found[(found["split"] == "test") & (found["fold"] == fold)]
        assert set(trained["lesion_id"]).isdisjoint(judged["lesion_id"])
        assert test.isdisjoint(trained["image_id"])

    assert result["architectures"][0]["test"]["n_images"] == len(test)  # the final model is judged as ever
    require_followed(workspace)
    require_evidence(workspace, result, metrics)
    require_page(run, metrics)
    names = [task["task"] for task in result["tasks"]]
    assert set(TOLD) <= set(names)
    assert len(names) == len(set(names))
    assert all((run / name).is_dir() for name in names)

    again = workspace.run(*arguments)
    assert again.returncode == 0, again.stderr
    assert f"Out of fold: 2 folds, {told['n_images']} images of {told['n_lesions']} lesions" in again.stdout
    tasks = json.loads((workspace.path / "runs/latest/tasks.json").read_text())
    assert {task["task"] for task in tasks if not task["cached"]} == {"compare", "register", "promote", "notify"}
    assert len(workspace.json("models", "--profile", "phantom")) == 1


def require_followed(workspace: Workspace) -> None:
    """Each training is a run of its own in MLflow, under a name that tells its fold."""
    client = connect(workspace.registry)
    experiment = client.get_experiment_by_name("dermaflow-training")
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert sorted(names) == ["train cnn", "train cnn fold 0", "train cnn fold 1"]


def require_evidence(workspace: Workspace, result: dict, metrics: dict) -> None:
    """The registered version has the figures and the predictions behind them."""
    registration = json.loads(
        (workspace.path / "runs" / result["run_id"] / "register/registration/registration.json").read_text()
    )
    facts = registration["facts"]["out_of_fold"]
    assert facts["test"] == metrics["test"]
    assert facts["over_folds"] == metrics["over_folds"]
    (evidence,) = (workspace.path / ".dermaflow/mlartifacts").glob("*/artifacts/evidence/out_of_fold")
    assert json.loads((evidence / "metrics.json").read_text()) == metrics
    assert (evidence / "predictions.parquet").exists()
    (version,) = workspace.json("models", "--profile", "phantom")
    assert version["tags"]["dermaflow.test.balanced_accuracy"] == str(
        result["candidate"]["test"]["balanced_accuracy"]["estimate"]
    )


def require_page(run: Path, metrics: dict) -> None:
    """The report has a section with the same tables and pictures as the evaluation."""
    page = Page((run / "report.html").read_text())
    headings = [text for level, text in page.headings if level == 2]
    at = SECTIONS.index("Evaluation") + 1
    assert headings == [*SECTIONS[:at], "Out of fold", *SECTIONS[at:]]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name in ("per-class", "confusion", "operating-points", "calibration", "subgroups"):
        assert {name, f"folds-cnn-{name}"} <= set(page.tables)
    overall, spread = metrics["test"]["overall"], metrics["over_folds"]
    row = page.tables["folds-architectures"][2]
    assert row[:3] == [overall["balanced_accuracy"][end] for end in ("estimate", "low", "high")]
    assert row[-4:] == [spread[name][part] for name in ("balanced_accuracy", "auroc") for part in ("mean", "sd")]
    each = [[fold[name] for name in ("balanced_accuracy", "auroc")] for fold in metrics["by_fold"]]
    assert page.tables["folds"][2:] == [pytest.approx(values) for values in each]
    assert "did not finish" not in page.text
