"""The run report: one HTML file, made of a run's artifacts alone, for a physician, an engineer and an auditor.

The same artifacts give the same bytes. What the page says is in `report.html.jinja`; its facts come from
`pipelines.report_facts`, its pictures from `pipelines.report_pictures`. Text from data is escaped everywhere.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.report_facts import Run, gather
from pipelines.results import REPORT

TEMPLATE = "report.html.jinja"
_PASSWORD = re.compile(r"(://[^/@\s:]*:)[^/@\s]+@")


def write_report(folder: Path) -> Path:
    """Write the report of a run, finished or not, to `report.html` in its folder.

    Parameters
    ----------
    folder: of the run; it holds `request.json` and an artifact for each step that finished.

    Returns
    -------
    The report's path. A reader sees the old report or the new one, never half of it.

    Raises
    ------
    InputError
        when the folder has no request, or a newer Dermaflow wrote its artifacts.
    """
    page = render(Run.open(folder))
    target = folder / REPORT
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{REPORT}.", encoding="utf-8", delete=False) as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)  # mkstemp's 0600 would hide the report from other users of a shared volume
    os.replace(file.name, target)
    return target


def render(run: Run) -> str:
    """The report of a run as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a figure that is not in its artifact is an error, not a blank
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": duration,
        "fixed": lambda value, digits=3: f"{value:.{digits}f}",
        "general": lambda value: f"{value:.3g}",
        "grouped": lambda value: f"{value:,}",
        "percent": lambda share: f"{100 * share:.1f}".removesuffix(".0") + " %",
        "plural": lambda count, one: f"{count:,} {one if count == 1 else one + 's'}",
        "pretty": pretty,
        "spaced": lambda name: name.replace("_", " "),
    }
    return environment.get_template(TEMPLATE).render(gather(run))


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8.0 s, 2 min 45 s, 1 h 3 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def pretty(value: Any) -> str:
    """A JSON value for reading, without the passwords that addresses of servers may hold."""
    return _PASSWORD.sub(r"\1***@", json.dumps(value, indent=2))
