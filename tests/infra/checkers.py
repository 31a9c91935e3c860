"""Tools that check infra/ and .github/: found where they are, or the test says why it skips."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workspace import ROOT

INFRA = ROOT / "infra"
KUBERNETES = INFRA / "kubernetes"
KUBERNETES_VERSION = "1.32.0"  # that the manifests are checked against; kubernetes/README.md and variables.tf name it too
OVERLAYS = ("dev", "prod", "prod-own-s3", "prod-external-postgres")
_OWN = ROOT / ".venv-infra" / "bin"


def checker(name: str) -> str:
    """A tool of requirements/infra.txt."""
    if not (_OWN / name).is_file():
        pytest.skip(f"{name} is not there: `make setup-infra` installs it into .venv-infra")
    return str(_OWN / name)


def passes(*command: str | Path, **options: Any) -> str:
    """Run a tool that is to find nothing; its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=ROOT, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}{done.stderr[-3000:]}"
    return done.stdout


def fails(*command: str | Path, **options: Any) -> str:
    """Run a tool that is to find something; what it says."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=ROOT, **options)
    assert done.returncode != 0, f"{' '.join(map(str, command))} found nothing\n{done.stdout[-3000:]}"
    return done.stdout + done.stderr


@cache
def built(folder: Path) -> str:
    """What kustomize makes of a folder."""
    if shutil.which("kustomize"):
        return passes("kustomize", "build", folder)
    if shutil.which("kubectl") and "Kustomize Version: v5" in passes("kubectl", "version", "--client"):
        return passes("kubectl", "kustomize", folder)
    pytest.skip("neither kustomize nor a kubectl with kustomize 5 is there (Debian 12's kubectl has version 2)")


def overlay_built(name: str, folder: Path) -> str:
    """What an overlay builds; also prod with its own S3, and with a database outside, switched as its README says."""
    if name in ("dev", "prod"):
        return built(KUBERNETES / "overlays" / name)
    copy = folder / name
    shutil.copytree(KUBERNETES, copy)
    settings = copy / "overlays" / "prod" / "kustomization.yaml"
    text = settings.read_text()
    if name == "prod-own-s3":
        changed = re.sub(r"components:\n.*external-s3.*\n", "components: []\n", text)
    else:
        changed = text.replace("# - ../../components/external-postgres", "- ../../components/external-postgres")
    assert changed != text
    settings.write_text(changed)
    return built(copy / "overlays" / "prod")


def documents(text: str) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return [document for document in yaml.safe_load_all(text) if document]
