"""The report of a run in a folder, from what the run left there."""

from __future__ import annotations

from pathlib import Path

from components.report import core
from components.report.facts import Run
from dermaflow.artifacts import ARTIFACT_FILE, read_json
from dermaflow.progress import parse
from dermaflow.run_folder import LOG, REPORT, REQUEST, tasks_of


def write_report(folder: Path) -> Path:
    """Write the report of a run, finished or not, to `report.html` in its folder.

    Parameters
    ----------
    folder: of the run; it holds `request.json` and an artifact for each step that finished.

    Returns
    -------
    The report's path.

    Raises
    ------
    InputError
        when the folder has no request, or a newer Dermaflow wrote its artifacts.
    """
    target = folder / REPORT
    core.write_report(open_run(folder), target)
    return target


def open_run(folder: Path) -> Run:
    """The run in a folder; raises InputError when it has no request."""
    tasks = tasks_of(folder)
    seals = (seal for task in tasks for seal in sorted((folder / task["task"]).glob(f"*/{ARTIFACT_FILE}")))
    return Run(
        id=folder.resolve().name,
        request=read_json(folder / REQUEST),
        tasks=tasks,
        artifacts={seal.parent.relative_to(folder).as_posix(): seal.parent for seal in seals},
        errors=_errors(folder / LOG),
    )


def _errors(log: Path) -> dict[str, str]:
    """What failed tasks said of themselves last, by task, from a run's log."""
    found: dict[str, str] = {}
    if not log.exists():
        return found
    task = ""
    with log.open(errors="replace") as lines:
        for event in filter(None, map(parse, lines)):
            if event["event"] == "task_started":
                task = event["task"]
            elif event["event"] == "error":
                found[task] = str(event["message"])
    return found
