"""The run report: one HTML file, made of a run's artifacts alone, for a physician, an engineer and an auditor.

The same artifacts give the same bytes. What the page says is in `report.html.jinja`; its facts come from
`components.report.facts`, its pictures from `components.report.pictures`.
"""

from __future__ import annotations

from pathlib import Path

from components.report.facts import Run, gather
from components.report.page import render
from dermaflow.artifacts import write_text

TEMPLATE = "report.html.jinja"


def write_report(run: Run, target: Path) -> None:
    """Write the report of a run, finished or not.

    Raises
    ------
    InputError
        when an artifact can not be read, or a newer Dermaflow wrote it; an older report is left as it was.
    """
    write_text(target, render(TEMPLATE, gather(run)))
