"""The data part of the pipeline alone: ingest, its gate, split, its gate, each in a process of its own.

Where things land and what they are called is as in dvc.yaml; the pipeline itself is `pipelines.training`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from components import module_of
from dermaflow import contracts
from dermaflow.dataset import Dataset
from dermaflow.errors import DermaflowError
from dermaflow.progress import parse

TASKS: dict[str, dict[str, str]] = {  # each task's artifacts, and their folders
    "ingest": {"dataset": "dataset"},
    "validate": {"dataset": "dataset", "report": "validation"},
    "split": {"dataset": "dataset", "splits": "splits"},
    "validate-splits": {"dataset": "dataset", "splits": "splits", "report": "validation-splits"},
}


class StepError(DermaflowError):
    """A step that ended without success; `exit_code` is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def prepare(out: Path, profile: str, overrides: Sequence[str], on_event: Callable[[dict[str, Any]], None]) -> None:
    """Run the tasks one after the other; their artifacts come to lie in `out`.

    Parameters
    ----------
    on_event: called with each event that a step reports, and with task_started and task_finished around it.

    Raises
    ------
    StepError
        with the message and the exit code of the first step that does not succeed.
    """
    for task in TASKS:
        on_event({"event": "task_started", "task": task})
        started = time.monotonic()
        failure = _run(_command(task, out, profile, overrides), on_event)
        state = "FAILED" if failure else "SUCCEEDED"
        seconds = round(time.monotonic() - started, 2)
        on_event({"event": "task_finished", "task": task, "state": state, "seconds": seconds, "cached": False})
        if failure:
            raise StepError(f"{task}: {failure[0]}", failure[1])


def summarise(out: Path) -> dict[str, Any]:
    """What the prepared data are: counts, rejects by reason, warnings, and where everything lies."""
    dataset = Dataset.open(out / "dataset")
    reports = [contracts.read_info(out / name, contracts.VALIDATION_REPORT) for name in ("validation", "validation-splits")]
    splits = contracts.read_info(out / "splits", contracts.SPLITS)
    return {
        "dataset": {
            **dataset.version,
            **{name: dataset.info["counts"][name] for name in ("images", "lesions", "withdrawn")},
            "rejects": {str(reason): int(count) for reason, count in dataset.rejects["reason"].value_counts().items()},
        },
        "warnings": [warning for report in reports for warning in report["warnings"]],
        "splits": {"digest": splits["digest"], "counts": splits["counts"]},
        "paths": {
            "dataset": str(out / "dataset"),
            "splits": str(out / "splits"),
            "data_docs": str(out / "validation" / "data_docs" / "index.html"),
        },
    }


def _command(task: str, out: Path, profile: str, overrides: Sequence[str]) -> list[str]:
    options = [part for name, folder in TASKS[task].items() for part in (f"--{name}", str(out / folder))]
    sets = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-u", "-m", f"components.{module_of(task)}", "--profile", profile, *sets, *options]


def _run(command: list[str], on_event: Callable[[dict[str, Any]], None]) -> tuple[str, int] | None:
    """Carry out a step; None when it succeeds, else its message and exit code."""
    said: list[str] = []
    message = None
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        try:
            for line in process.stderr or ():
                event = parse(line)
                if event is None:
                    said = [*said[-50:], line.rstrip()]
                    continue
                message = event["message"] if event["event"] == "error" else message
                on_event(event)
        except BaseException:
            process.terminate()
            raise
    return (message or "\n".join(said), process.returncode) if process.returncode else None
