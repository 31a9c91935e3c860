"""The command itself: help, JSON, check, compile, validate."""

from __future__ import annotations

import json

import pytest

from components import TASKS
from tests.workspace import Workspace, sets

COMMANDS = (["run"], ["check"], ["compile"], ["validate"], ["evaluate"], ["models"], ["report"], ["data"], ["data", "phantom"])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_says_what_it_does_and_what_it_takes(workspace: Workspace, command: list[str]):
    done = workspace.run(*command, "--help")
    assert done.returncode == 0
    assert f"dermaflow {' '.join(command)}" in done.stdout
    assert len(done.stdout.splitlines()) >= 8


def test_help_lists_every_command_and_the_exit_codes(workspace: Workspace):
    said = workspace.run("--help").stdout
    for command in COMMANDS:
        assert command[0] in said
    assert "Exit codes" in said


def test_check_tells_the_graph_with_a_gpu_for_training(workspace: Workspace):
    found = workspace.json("check", "--profile", "phantom")
    assert found["ok"]
    tasks = {task["name"]: task for task in found["tasks"]}
    assert list(tasks) == list(TASKS)
    assert {name for name, task in tasks.items() if task["gpu"]} == {"train"}
    assert "validate" in tasks["split"]["after"]
    assert not (workspace.path / "runs").exists()


def test_check_reports_every_fault_and_exits_2(workspace: Workspace):
    done = workspace.run(
        "check", "--profile", "phantom", "--json", *sets("data.source=/nowhere", "train.weights.xception=no.h5")
    )
    assert done.returncode == 2
    faults = {item["name"] for item in json.loads(done.stdout)["checks"] if not item["ok"]}
    assert faults == {"data", "weights"}


def test_compile_refuses_a_name_that_kfp_would_not_read(workspace: Workspace):
    done = workspace.run("compile", "--output", "pipeline.txt")
    assert done.returncode == 2
    assert "pipeline.txt" in done.stderr


def test_validate_passes_phantoms_and_fails_doubled_labels(workspace: Workspace):
    report = workspace.json("validate", "data/phantom", *sets("validate.min_lesions_per_class=2"))
    assert report["success"]
    failed = workspace.run("validate", "data/phantom", "--json", *sets("validate.min_lesions_per_class=1000"))
    assert failed.returncode == 1
    assert any("enough lesions" in rule for rule in json.loads(failed.stdout)["blocking"])
    assert workspace.run("validate", "/nowhere").returncode == 2


def test_models_on_a_new_registry_is_an_empty_list(workspace: Workspace):
    assert workspace.json("models") == []


def test_report_of_a_run_that_is_not_there(workspace: Workspace):
    done = workspace.run("report", "nothing")
    assert done.returncode == 2
    assert "no run 'nothing'" in done.stderr
