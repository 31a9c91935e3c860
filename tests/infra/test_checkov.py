"""checkov's policies over everything, in one run. Exceptions: infra/checkov.yaml, or at the resource."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.infra.checkers import INFRA, OVERLAYS, checker, overlay_built
from tests.workspace import ROOT

LEAST = {"kubernetes": 1500, "terraform": 150, "github_actions": 100, "dockerfile": 20}  # fewer checks: it did not look


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What checkov says of each framework."""
    command, folder = checker("checkov"), tmp_path_factory.mktemp("checkov")
    for name in OVERLAYS:
        (folder / f"{name}.yaml").write_text(overlay_built(name, folder.with_name(f"{folder.name}-copies")))
    for place in (INFRA / "terraform", INFRA / "mlflow", INFRA / "images", ROOT / ".github"):
        shutil.copytree(place, folder / place.name, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
    words = ["--directory", str(folder), "--framework", *LEAST, "--output", "json"]
    done = subprocess.run(
        [command, "--config-file", str(INFRA / "checkov.yaml"), *words], capture_output=True, text=True, check=False
    )
    told: dict[str, dict] = {}
    for report in json.loads(done.stdout):
        kept = told.setdefault(report["check_type"], {"passed": 0, "failed": []})
        kept["passed"] += report["summary"]["passed"]
        kept["failed"] += [f"{check['check_id']} {check['check_name']}: {check['resource']}"
                           for check in report["results"]["failed_checks"]]  # fmt: skip
        assert report["summary"]["parsing_errors"] == 0
    return told


@pytest.mark.parametrize("framework", LEAST)
def test_policies_are_kept(reports: dict[str, dict], framework: str):
    assert reports[framework]["failed"] == []
    assert reports[framework]["passed"] >= LEAST[framework]


def test_each_exception_has_its_reason():
    """In infra/checkov.yaml a comment stands above each; beside a resource, words follow the rule."""
    lines = (INFRA / "checkov.yaml").read_text().splitlines()
    rules = [index for index, line in enumerate(lines) if line.strip().startswith("- CKV")]
    assert rules
    assert all(lines[index - 1].strip().startswith("#") for index in rules)
    for path in [
        *INFRA.rglob("*.tf"),
        *INFRA.rglob("*Dockerfile"),
        *INFRA.rglob("*.yaml"),
        *Path(ROOT / ".github").rglob("*.yml"),
    ]:
        for line in path.read_text().splitlines():
            if "checkov:skip=" in line and path.name != "checkov.yaml":
                assert len(line.partition("checkov:skip=")[2].partition(":")[2].strip()) > 7, f"{path}: {line}"
