"""The digest of the code that a step runs, so that a cached answer is used only while the code is the same."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from components.register.origins import LOCK
from dermaflow.artifacts import file_digest, json_digest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dermaflow", "components")
DATA_FILES = ("*.json", "*.csv", "*.jinja")  # that a step reads from its own folder


@cache
def code_digest(step: str) -> str:
    """Digest of a step's modules, of every module of ours that they import (however deep), its data files, and the lock.

    An edit to a module that a step does not import leaves its digest, and so its cached answer, as it is.
    """
    start = ROOT / "components" / step
    files = {file for pattern in DATA_FILES for file in start.rglob(pattern)}
    files = files.union(_closure(start / "core.py"), *(_closure(path) for path in start.rglob("component.py")))
    files |= {LOCK} if LOCK.exists() else set()
    return json_digest({path.relative_to(ROOT).as_posix(): file_digest(path) for path in files})


def _closure(module: Path) -> set[Path]:
    seen: set[Path] = set()
    waiting = [module]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += _imports(path)
    return seen


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in PACKAGES:
                place = ROOT.joinpath(*name.split("."))
                packages = [parent / "__init__.py" for parent in (place, *place.parents) if parent.is_relative_to(ROOT)]
                found += [file for file in (place.with_suffix(".py"), *packages) if file.exists()]
    return tuple(found)


def pipeline_digest() -> str:
    """Digest of the whole pipeline: the code of every step and the definition that joins them."""
    steps = sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py"))
    definition = file_digest(ROOT / "pipelines" / "training.py")
    return json_digest({"definition": definition, **{step: code_digest(step) for step in steps}})
