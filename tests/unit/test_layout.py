"""The house stays in order: imports run downward, every step has the same files, and mlflow/ shadows nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from components import STEPS
from tests.workspace import ROOT

FLOORS = {
    "dermaflow": {"dermaflow"},
    "components": {"dermaflow", "components"},
    "pipelines": {"dermaflow", "components", "pipelines"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_mlflow_is_the_package_not_our_folder():
    program = "import mlflow; print(mlflow.__version__, mlflow.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in done.stdout
    assert (ROOT / "mlflow").is_dir()
    assert not list((ROOT / "mlflow").rglob("__init__.py"))


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_run_downward(floor: str):
    for path in (ROOT / floor).rglob("*.py"):
        ours = {name.split(".")[0] for name in imported(path)} & {"dermaflow", "components", "pipelines", "tests"}
        assert ours <= FLOORS[floor], path


def test_no_component_imports_another():
    for path in (ROOT / "components").rglob("*.py"):
        own = path.relative_to(ROOT).parts[1]
        others = {name.split(".")[1] for name in imported(path) if name.startswith("components.")}
        assert others <= {own}, path


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_the_same_files(step: str):
    folder = ROOT / "components" / step
    assert {"core.py", "component.py", "__main__.py", "README.md"} <= {path.name for path in folder.iterdir()}
    assert (folder / "component.py").read_text().isascii()


@pytest.mark.parametrize("step", STEPS)
def test_every_step_explains_itself_on_its_command_line(step: str):
    done = subprocess.run(
        [sys.executable, "-m", f"components.{step}", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--profile" in done.stdout


def test_lock_files_name_no_host_and_pin_every_file_by_hash():
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        pins = re.findall(r"^[a-z0-9][\w.\[\]-]*==\S+ .*$", text, re.MULTILINE)
        assert len(pins) > 100
        assert all(line.rstrip().endswith("\\") for line in pins)  # a hash follows


def test_each_dependency_has_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    for block in re.findall(r"^(?:dependencies|dev) = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.strip().startswith('"'):
                assert re.search(r'",\s*# \w', line), line


def test_kfp_is_the_version_that_the_local_runner_was_written_for():
    import kfp

    assert kfp.__version__ == "2.17.0"  # pipelines/local.py wraps functions of this version
