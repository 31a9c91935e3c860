"""What the README tells people to type exists: tasks, commands, options, parameters, files."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from dermaflow.params import load_params
from tests.workspace import DERMAFLOW, ROOT

README = (ROOT / "README.md").read_text()
REGISTRY = (ROOT / "docs" / "registry.md").read_text()
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README + REGISTRY, re.DOTALL))
COMMANDS = sorted({line.split("#")[0].strip() for line in BLOCKS.splitlines() if line.startswith("dermaflow ")})


def test_tasks_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", README))
    assert named
    assert named <= targets


def test_files_that_are_linked_exist():
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", README):
        assert (ROOT / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options_exist(command: str):
    words = shlex.split(command)[1:]
    names = words[:2] if words[0] in ("data", "images") else words[:1]
    done = subprocess.run([str(DERMAFLOW), *names, "--help"], capture_output=True, text=True, check=True)
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout


@pytest.mark.parametrize("key", sorted(set(re.findall(r"--set (\S+?)=", README)) - {"KEY"}))
def test_parameters_exist(key: str):
    value = load_params("default", root=ROOT).model_dump(mode="json", by_alias=True)
    for part in key.split("."):
        value = value[part]


def test_profiles_are_described():
    for profile in ("phantom", "quick", "default", "paper"):
        assert f"| `{profile}` |" in README


def test_no_photograph_of_a_lesion_is_in_the_repository():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [name for name in tracked if name.lower().endswith((".jpg", ".jpeg", ".npy", ".h5", ".keras", ".parquet"))] == []


def test_every_reason_for_a_reject_is_explained():
    """Reasons are told by a short word; a person looks it up in docs/data.md."""
    explained = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "data.md").read_text()))
    code = "\n".join(path.read_text() for path in [*(ROOT / "components/ingest").glob("*.py"), ROOT / "dermaflow/storage.py"])
    told = set(re.findall(r'(?:RejectedError|StoredObjectError)\(\s*"([a-z_]+)"', code))
    told |= set(re.findall(r'Fault\(\s*[^,"]+, "([a-z_]+)"', code))
    assert len(told) > 15
    assert told <= explained
