"""What the README tells people to type exists: tasks, commands, options, parameters, files."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from typing import Any

import pytest

from dermaflow.params import load_params
from tests.workspace import DERMAFLOW, ROOT

README = (ROOT / "README.md").read_text()
REGISTRY = (ROOT / "docs" / "registry.md").read_text()
AUDIT = (ROOT / "docs" / "audit.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README + REGISTRY + AUDIT + OPERATIONS, re.DOTALL))
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


def below(schema: dict[str, Any], whole: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The schemas of a field (NAME), a list's items ([]) or an object's values (*), through references and alternatives."""
    schema = whole["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    found = [found for option in schema.get("anyOf", ()) for found in below(option, whole, part)]
    if part == "[]":
        return [*found, *([schema["items"]] if "items" in schema else [])]
    if part == "*":
        values = schema.get("additionalProperties")
        return [*found, *([values] if isinstance(values, dict) else [])]
    return [*found, *([schema["properties"][part]] if part in schema.get("properties", {}) else [])]


def in_schema(field: str, schema: dict[str, Any]) -> bool:
    """Whether a dossier has a field, written as in docs/audit.md."""
    there = [schema]
    for part in field.replace("[]", ".[]").split("."):
        there = [found for each in there for found in below(each, schema, part)]
    return bool(there)


def test_every_field_that_auditors_are_pointed_to_is_in_the_schema_of_a_dossier():
    schema = json.loads((ROOT / "pipelines" / "dossier.schema.json").read_text())
    rows = [line for line in AUDIT.partition("## What auditors ask")[2].splitlines() if line.startswith(("|", "- ", "  "))]
    fields = {field for row in rows for field in re.findall(r"`([a-z_]+(?:\[\]|\.[a-z_*]+)+[^`]*)`", row)}
    assert len(fields) > 80
    assert {field for field in fields if not in_schema(field, schema)} == set()
    for wrong in (
        "evidence.test.overall.*.median",
        "decisions[].gates.verdict",
        "evidence.nothing",
        "approvals[].approver.name",
    ):
        assert not in_schema(wrong, schema)


def test_every_guideline_is_mapped_and_what_is_not_answered_is_named():
    answered = [line for line in AUDIT.splitlines() if line.startswith("### ")]
    named = ("Annex IV, point 2(g)", "machine learning practice", "21 CFR Part 11", "Model cards", "CLEAR Derm", "TRIPOD+AI")
    assert all(any(name in line for line in answered) for name in named)
    assert AUDIT.partition("## What Dermaflow does not answer")[2].count("\n- ") >= 8


def test_every_finding_is_explained():
    """verify names findings by a short word; a person looks it up in docs/registry.md or docs/audit.md."""
    explained = set(re.findall(r"`([a-z_]+)`", REGISTRY + AUDIT))
    code = "\n".join((ROOT / "pipelines" / f"{name}.py").read_text() for name in ("verification", "version_checks", "audit"))
    told = set(re.findall(r'(?:Finding|finding)\(\s*"([a-z_]+)"', code)) | {"model_changed", "evidence_changed"}
    assert len(told) > 20
    assert told <= explained


def test_every_reason_for_a_reject_is_explained():
    """Reasons are told by a short word; a person looks it up in docs/data.md."""
    explained = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "data.md").read_text()))
    code = "\n".join(path.read_text() for path in [*(ROOT / "components/ingest").glob("*.py"), ROOT / "dermaflow/storage.py"])
    told = set(re.findall(r'(?:RejectedError|StoredObjectError)\(\s*"([a-z_]+)"', code))
    told |= set(re.findall(r'Fault\(\s*[^,"]+, "([a-z_]+)"', code))
    assert len(told) > 15
    assert told <= explained
