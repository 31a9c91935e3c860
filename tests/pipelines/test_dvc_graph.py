"""The DVC graph and the KFP graph are the same pipeline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components import OUT_OF_FOLD, TASKS, module_of
from dermaflow.params import load_params
from pipelines.graph import tasks
from tests.workspace import ROOT

ONLY_IN_DVC = {"phantom"}  # draws the data that the fresh clone has not


@pytest.fixture(scope="module")
def stages() -> dict[str, dict]:
    loaded = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in loaded.items()}


def ancestors(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Every task that a task comes after, however far: an order may be said directly or by way of another step."""
    found: dict[str, set[str]] = {}
    for name in TASKS:
        direct = edges[name] - ONLY_IN_DVC
        found[name] = direct.union(*(found[other] for other in direct)) if direct else set()
    return found


def dvc_edges(stages: dict[str, dict]) -> dict[str, set[str]]:
    outs = ((out, name) for name, stage in stages.items() for out in stage["outs"])
    maker = {next(iter(out)) if isinstance(out, dict) else out: name for out, name in outs}  # a dict: an out with options

    def makers(dep: str) -> set[str]:
        return {name for out, name in maker.items() if out == dep or Path(dep) in Path(out).parents}

    return {name: set().union(*(makers(dep) for dep in stage.get("deps", ()))) for name, stage in stages.items()}


def test_both_graphs_have_the_same_tasks(stages):
    assert set(stages) - ONLY_IN_DVC == set(TASKS)
    assert [task["name"] for task in tasks(load_params("phantom"))] == list(TASKS)


def test_both_graphs_have_the_same_order(stages):
    kfp = ancestors({task["name"]: set(task["after"]) for task in tasks(load_params("phantom"))})
    assert ancestors(dvc_edges(stages)) == kfp


def test_folds_are_in_the_pipelines_graph_alone_and_a_desk_says_so():
    """DVC's stages are fixed; with folds, data are prepared at a desk too, and the rest is refused before it works."""
    folded = [task["name"] for task in tasks(load_params("phantom", ["split.folds=2"]))]
    assert [name for name in folded if name not in OUT_OF_FOLD] == list(TASKS)
    command = [sys.executable, "-m", "components.augment", "--dataset", "none", "--splits", "none", "--plan", "none"]
    done = subprocess.run([*command, "--set", "split.folds=2"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "split.folds is 2, but only the pipeline makes a model of each fold: use dermaflow run" in done.stderr


def test_each_stage_runs_the_module_of_its_name_and_follows_its_code(stages):
    for name in TASKS:
        assert f"python -m components.{module_of(name)} " in stages[name]["cmd"]
        assert f"components/{module_of(name).split('.')[0]}" in stages[name]["deps"]


def test_architectures_come_from_params_alone(stages):
    loaded = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert loaded["train"]["foreach"] == loaded["evaluate"]["foreach"] == "${train.architectures}"
