"""Data Docs: a validation report as a page that opens offline, with the failing rows of each rule named.

What a rule asks is told in Great Expectations' words. The page is ours, because Great Expectations' own loads its styles
and scripts from content networks, writes text from the data into its HTML as it is, and shows its index by a script.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.validate.rules import BLOCKING, ROWS_NAMED, WARNING

PAGES = Path(__file__).with_name("pages")
STATES = ("blocks", "warns", "notes", "passes")
_NUMBERS = 4  # significant digits


def write_data_docs(report: dict[str, Any], folder: Path) -> None:
    """Write index.html, the verdict with all rules, and validations/<suite>.html, the failing rows of each rule."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = _shown
    rules = [{**rule, "state": _state(rule), "anchor": f"rule-{place}"} for place, rule in enumerate(report["rules"], 1)]
    suites = list(dict.fromkeys(rule["suite"] for rule in rules))
    (folder / "validations").mkdir(parents=True)
    for suite in suites:
        of_suite = [rule for rule in rules if rule["suite"] == suite]
        page = environment.get_template("validations.html.jinja").render(suite=suite, rules=of_suite, rows_named=ROWS_NAMED)
        (folder / "validations" / f"{suite}.html").write_text(page)
    worst_first = sorted(rules, key=lambda rule: STATES.index(rule["state"]))
    page = environment.get_template("index.html.jinja").render(suites=suites, rules=worst_first, report=report)
    (folder / "index.html").write_text(page)


def _state(rule: dict[str, Any]) -> str:
    """How a rule came out, one of STATES."""
    if rule["success"]:
        return "passes"
    return {BLOCKING: "blocks", WARNING: "warns"}.get(rule["level"], "notes")


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.{_NUMBERS}g}" if isinstance(value, float) else str(value)
