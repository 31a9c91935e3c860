"""The published schemas as the code has them: `python -m tests.schemas` writes them anew (`make schema`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from components.register import bundle
from pipelines import dossier

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = {
    ROOT / "components" / "register" / bundle.SCHEMA_FILE: bundle.schema,
    ROOT / "pipelines" / dossier.SCHEMA_FILE: dossier.schema,
}


def text(schema: dict[str, Any]) -> str:
    """A schema as its file has it."""
    return json.dumps(schema, indent=1) + "\n"


def stale() -> list[Path]:
    """Files that are not as the code has them."""
    return [path for path, schema in SCHEMAS.items() if not path.is_file() or path.read_text() != text(schema())]


if __name__ == "__main__":
    found = stale()
    if "--check" in sys.argv:
        print("\n".join(f"{path.relative_to(ROOT)} is not as the code has it: make schema" for path in found))
        sys.exit(bool(found))
    for path in found:
        path.write_text(text(SCHEMAS[path]()))
        print(f"{path.relative_to(ROOT)} written")
