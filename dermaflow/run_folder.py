"""What lies in the folder of a local run, runs/<run id>, beside the artifacts of its steps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dermaflow.artifacts import read_json

REQUEST = "request.json"  # parameters, and the arguments of the pipeline
TASKS = "tasks.json"  # what became of each task, in the order in which they started
LOG = "run.log"  # what the steps printed
REPORT = "report.html"
_ERROR_LINE = re.compile(r"^(?:[a-z_]+\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Iteration)\b")


def tasks_of(folder: Path) -> list[dict[str, Any]]:
    """What became of each task that has started."""
    path = folder / TASKS
    return list(read_json(path)) if path.exists() else []


def last_error(lines: Iterable[str]) -> str | None:
    """The last line that is an exception's, as it ends a traceback; None where there is none."""
    found = [line.strip() for line in lines if _ERROR_LINE.match(line.strip())]
    return found[-1] if found else None
