"""The run report: one HTML file, made of a run's artifacts alone, for a physician, an engineer and an auditor.

The same artifacts give the same bytes. What the page says is in `report.html.jinja`; its facts come from
`pipelines.report_facts`, its pictures from `pipelines.report_pictures`.
"""

from __future__ import annotations

from pathlib import Path

from dermaflow.artifacts import write_text
from pipelines.page import render
from pipelines.report_facts import Run, gather
from pipelines.results import REPORT

TEMPLATE = "report.html.jinja"


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
    write_text(target, render(TEMPLATE, gather(Run.open(folder))))
    return target
