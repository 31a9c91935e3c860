"""What a local run calls its tasks, and whose words a failed one gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.local import _ended_from_outside, _signal_of, _Watch
from pipelines.report import open_run


@pytest.mark.parametrize(
    ("task", "loops", "label"),
    [
        ("split", "", "split"),
        ("train", "/for-loop-2-iteration-1", "train-resnet50"),
        ("pool", "/for-loop-3-iteration-0", "pool-cnn"),
        ("train-fold", "/for-loop-3-iteration-1/for-loop-5-iteration-12", "train-resnet50-fold-12"),
        ("split-fold", "/for-loop-3-iteration-0/for-loop-5-iteration-0", "split-cnn-fold-0"),
    ],
)
def test_a_task_of_a_loop_is_called_by_its_architecture_and_fold(tmp_path: Path, task: str, loops: str, label: str):
    assert _Watch(tmp_path, ["cnn", "resnet50"])._label(task, f"a-run{loops}") == label


@pytest.mark.parametrize(
    ("exit_code", "name"),
    [
        (0, None),
        (1, None),
        (2, None),
        (75, None),
        (255, None),
        (-9, "SIGKILL"),
        (137, "SIGKILL"),
        (139, "SIGSEGV"),
        (143, "SIGTERM"),
    ],
)
def test_a_process_that_was_killed_is_told_from_one_that_failed(exit_code: int, name: str | None):
    """Also by what the shell says that kfp starts it through."""
    assert _signal_of(exit_code) == name
    assert _ended_from_outside(exit_code) == (name is not None or exit_code == 75)


def test_a_failed_task_is_quoted_with_its_own_last_words(tmp_path: Path):
    events = [
        {"event": "task_started", "task": "train-cnn-fold-0"},
        {"event": "error", "step": "train", "message": "was interrupted"},
        {"event": "error", "step": "train", "message": "of fold 0"},
        {"event": "task_started", "task": "train-cnn-fold-1"},
        {"event": "error", "step": "train", "message": "of fold 1"},
        {"event": "task_started", "task": "notify"},
    ]
    (tmp_path / "run.log").write_text("".join(f"::dermaflow {json.dumps(event)}\n" for event in events))
    (tmp_path / "request.json").write_text("{}")
    assert open_run(tmp_path).errors == {"train-cnn-fold-0": "of fold 0", "train-cnn-fold-1": "of fold 1"}
