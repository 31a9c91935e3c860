"""A training that is killed within a run: the run starts it again, and it ends with the weights of one that was not."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.killed_training import run
from tests.workspace import TINY, Workspace


def test_a_killed_training_is_started_again_and_ends_with_the_same_weights(continued: Workspace, finished_run: Path):
    """Killed as the kernel kills it when memory runs out: the step's own process, not the shell that kfp starts it through."""
    undisturbed = json.loads((finished_run / "train-cnn/model/model.json").read_text())["weights_digest"]
    tasks = {task["task"]: task["seconds"] for task in json.loads((finished_run / "tasks.json").read_text())}
    settings = (*TINY, "train.architectures=[cnn]", "train.checkpoint_seconds=0")
    digests, killer, told = run(continued, {"cnn": 0.4 * tasks["train-cnn"]}, *settings)
    assert killer.killed == {"cnn"}
    assert digests == {"cnn": undisturbed}
    assert all(task["state"] == "SUCCEEDED" for task in told)
    log = next(continued.path.glob("runs/2*/run.log")).read_text()
    assert '"event": "retry"' in log
