"""Pages that stand alone: HTML from the templates beside this file, with everything in them.

Text from data is escaped everywhere. The same facts give the same bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dermaflow.artifacts import file_digest, json_digest

_PASSWORD = re.compile(r"(://[^/@\s:]*:)[^/@\s]+@")


def render(template: str, facts: dict[str, Any]) -> str:
    """A template as HTML."""
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
    return environment.get_template(template).render(facts)


def template_digest() -> str:
    """Digest of all templates: what pages were made with; those of other templates can not be compared byte for byte."""
    return json_digest({path.name: file_digest(path) for path in sorted(Path(__file__).parent.glob("*.jinja"))})


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8.0 s, 2 min 45 s, 1 h 3 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def pretty(value: Any) -> str:
    """A JSON value for reading, without the passwords that addresses of servers may hold."""
    return without_passwords(json.dumps(value, indent=2))


def without_passwords(text: str) -> str:
    """A text without the passwords that addresses of servers in it may hold."""
    return _PASSWORD.sub(r"\1***@", text)
