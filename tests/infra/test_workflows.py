"""The workflows: of GitHub's schema, without known holes, with shell that shellcheck passes and commands that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.checkers import INFRA, checker, passes
from tests.workspace import DERMAFLOW, ROOT

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}
JOBS = {f"{file}/{name}": job for file, workflow in WORKFLOWS.items() for name, job in workflow["jobs"].items()}
STEPS = [(job, step) for job, body in JOBS.items() for step in body["steps"]]
_COMMAND = re.compile(r"\bdermaflow ((?:data |images )?[a-z]+)((?: [^\n|&;]*)?)")


def test_workflows_are_those_that_were_asked_for():
    assert set(WORKFLOWS) == {"ci", "data", "images", "retrain", "drift"}


def test_workflows_have_the_schema_of_github():
    files = sorted(FOLDER.glob("*.yml"))
    passes(checker("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *files)
    passes(checker("check-jsonschema"), "--builtin-schema", "custom.github-workflows-require-timeout", *files)


def test_workflows_have_no_known_holes():
    passes(checker("zizmor"), "--offline", "--no-progress", "--strict-collection", ROOT / ".github")


@pytest.mark.parametrize(("job", "body"), JOBS.items(), ids=JOBS)
def test_jobs_have_least_rights_a_time_limit_and_no_twin(job: str, body: dict[str, Any]):
    workflow = WORKFLOWS[job.partition("/")[0]]
    rights = body.get("permissions", workflow["permissions"])
    assert isinstance(rights, dict), "every right is named"
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert {"contents", "packages", "id-token", "pull-requests"} >= set(rights)
    assert body["timeout-minutes"] <= 120
    assert "group" in workflow["concurrency"]


def test_only_the_release_may_write():
    writers = {job for job, body in JOBS.items() if "write" in body.get("permissions", {}).values()}
    assert writers == {"images/build", "images/examine", "images/lock"}


@pytest.mark.parametrize(("job", "step"), [pair for pair in STEPS if "run" in pair[1]],
                         ids=lambda value: value if isinstance(value, str) else value["run"][:30])  # fmt: skip
def test_scripts_pass_shellcheck(job: str, step: dict[str, Any]):
    assert "${{" not in step["run"], "an expression in a script is how a title becomes a command: hand it over by env"
    linter = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(linter), "--shell=bash", "-"], input=step["run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_actions_are_pinned_by_exact_version_and_listed():
    readme = (FOLDER / "README.md").read_text()
    for _, step in STEPS:
        if "uses" in step:
            name, _, version = step["uses"].partition("@")
            assert re.fullmatch(r"v\d+\.\d+\.\d+|[0-9a-f]{40}", version), step["uses"]
            assert f"| `{name}` | `{version}` |" in readme, f"{step['uses']} is not in README.md's list"


def test_secrets_reach_only_the_step_that_needs_them():
    for job, body in JOBS.items():
        if job == "data/validate":
            continue  # all its steps read the store
        assert "secrets." not in str(body.get("env", "")), f"{job}: every step would have them"
    assert [step for _, step in STEPS if re.search(r"echo [^\n]*\$\{?\w*(TOKEN|SECRET|PASSWORD)\b", step.get("run", ""))] == []


def _commands() -> list[tuple[str, str, str]]:
    """(where, command, options) of each `dermaflow ...` in workflows and manifests."""
    found = [(job, *match) for job, step in STEPS for match in _COMMAND.findall(step.get("run", ""))]
    for path in sorted((INFRA / "kubernetes").rglob("*.yaml")):
        for command, arguments in re.findall(r"command: \[dermaflow, (\w+)\]\n\s+args:\n((?:\s+- --.*\n)+)", path.read_text()):
            found.append((path.name, command, " ".join(re.findall(r"- (--[\w-]+)", arguments))))
    return found


@pytest.mark.parametrize(("where", "command", "options"), _commands(), ids=lambda value: value.strip()[:24])
def test_commands_and_their_options_exist(where: str, command: str, options: str):
    known = subprocess.run([str(DERMAFLOW), *command.split(), "--help"], capture_output=True, text=True, check=False)
    assert known.returncode == 0, known.stderr
    for option in (word for word in shlex.split(options) if word.startswith("--")):
        assert option in known.stdout, f"{where}: dermaflow {command} has no {option}"
