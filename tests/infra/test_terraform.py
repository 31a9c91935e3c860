"""The terraform files: their form, their sense to terraform and its provider, and what a plan would make."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dermaflow.once import RIGHTS
from tests.infra.checkers import INFRA, passes

FOLDER = INFRA / "terraform"
ENVIRONMENT = {**os.environ, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": os.devnull}


def terraform() -> str:
    found = shutil.which("terraform") or shutil.which("tofu")
    if found is None:
        pytest.skip("terraform is not there, so that its own checks did not run: install terraform 1.11 or newer, or opentofu")
    return found


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder with its provider: from the registry, or from a folder laid out as terraform's mirror."""
    command, copy = terraform(), tmp_path_factory.mktemp("terraform") / "terraform"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "terraform.tfvars"))
    places = [Path("/", top) for top in ("opt", "srv", "usr/share", "usr/local/share")]  # terraform knows those at home itself
    mirrors = [
        path.parent for place in places for depth in ("", "*/", "*/*/") for path in place.glob(f"{depth}registry.terraform.io")
    ]
    told = ""
    for source in (*([f"-plugin-dir={mirror}"] for mirror in mirrors), []):
        try:
            done = subprocess.run(
                [command, "init", "-backend=false", "-input=false", "-no-color", *source],
                cwd=copy, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=120,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            told = "it did not answer in two minutes"
            continue
        if done.returncode == 0:
            return copy
        told = done.stderr.strip()[-300:]
    pytest.skip(f"the AWS provider can not be had here, so that terraform validate and terraform test did not run: {told}")


def test_form_is_terraforms():
    passes(terraform(), "fmt", "-check", "-recursive", "-diff", FOLDER, env=ENVIRONMENT)


def test_it_is_valid(initialised: Path):
    passes(terraform(), f"-chdir={initialised}", "validate", "-no-color", env=ENVIRONMENT)


def test_plan_makes_what_it_must(initialised: Path):
    """terraform's own tests: they plan without an account (terraform/tests/plan.tftest.hcl)."""
    version = re.search(r"v(\d+)\.(\d+)", passes(terraform(), "version", env=ENVIRONMENT))
    if version is None or (int(version[1]), int(version[2])) < (1, 11):
        pytest.skip("terraform test needs 1.11 or newer: older ones can not be told what is only known after applying")
    output = passes(terraform(), f"-chdir={initialised}", "test", "-no-color", env=ENVIRONMENT)
    assert "0 failed" in output


def test_every_variable_is_described_typed_and_bounded():
    text = (FOLDER / "variables.tf").read_text()
    blocks = dict(re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL))
    assert len(blocks) > 10
    for name, block in blocks.items():
        for part in ("description =", "type ", "validation {", "error_message ="):
            assert part in block, f"{name} has no {part.strip(' ={')}"
    required = {name for name, block in blocks.items() if not re.search(r"^  default +=", block, re.MULTILINE)}
    example = set(re.findall(r"^(\w+) +=", (FOLDER / "terraform.tfvars.example").read_text(), re.MULTILINE))
    assert required == example, "terraform.tfvars.example shows what must be set, and nothing else"


def test_who_makes_objects_once_may_do_all_that_this_needs():
    """Registering, promoting and triggering make an object where none is, and read its first version (dermaflow/once.py)."""
    text = (FOLDER / "irsa.tf").read_text()
    lists = dict(re.findall(r"^  (\w+) += (.*\[.*\].*)$", text, re.MULTILINE))
    for account, bucket in (("dermaflow-register", "ledger"), ("dermaflow-trigger", "artifacts"), ("approver", "ledger")):
        block = text.partition(f"    {account} = {{")[2].partition("\n    }\n")[0]
        assert re.search(rf'versions = \[.*"{bucket}"', block), f"{account} may not list versions in {bucket}"
        writes = next(line for line in block.splitlines() if "PutObject" in line or "local.append" in line)
        granted = writes + "".join(
            lists[name] for name in re.findall(r"local\.(\w+)", writes + lists["append"]) if name in lists
        )
        assert all(f'"{right}"' in granted for right in RIGHTS if not right.startswith("s3:List")), account


def test_provider_is_pinned():
    assert re.search(r'version = "\d+\.\d+\.\d+"', (FOLDER / "versions.tf").read_text())
