"""infra/secrets.sh: random secrets, made once, readable by their owner, and never where git would take them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from dermaflow.roles import read_table
from tests.infra.checkers import INFRA
from tests.workspace import ROOT


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(INFRA / "secrets.sh"), str(folder)], capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_secrets_are_random_long_and_private(tmp_path: Path):
    assert make(tmp_path / "a").returncode == make(tmp_path / "b").returncode == 0
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)
    passwords = [value for name, value in first.items() if name.startswith(("postgres/", "mlflow/")) and "." not in name]
    assert len(set(passwords)) == len(passwords)
    assert all(len(password) == 32 and "\n" not in password for password in passwords)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "a").rglob("*"))


def test_secrets_are_made_once(tmp_path: Path):
    make(tmp_path / "a")
    before = contents(tmp_path / "a")
    assert make(tmp_path / "a").returncode == 0
    assert contents(tmp_path / "a") == before


def test_each_identity_has_its_own_key(tmp_path: Path):
    make(tmp_path / "a")
    identities = json.loads((tmp_path / "a" / "s3" / "s3.json").read_text())["identities"]
    secrets = {item["name"]: item["credentials"][0]["secretKey"] for item in identities}
    assert set(secrets) == {"admin", "mlflow", "steps", "register", "approver", "auditor", "trigger", "backup"}
    assert len(set(secrets.values())) == len(secrets)
    for name, secret in secrets.items():
        assert f"AWS_SECRET_ACCESS_KEY={secret}\n" in (tmp_path / "a" / "s3" / f"{name}.env").read_text()
    assert [item["name"] for item in identities if "Admin" in item["actions"]] == ["admin"]


def test_accounts_of_mlflow_are_those_of_the_table_of_roles(tmp_path: Path):
    """Each with a file for who acts as it, and the password alone for `dermaflow roles`."""
    make(tmp_path / "a")
    made = contents(tmp_path / "a" / "mlflow")
    accounts = read_table(ROOT / "mlflow" / "roles.yaml").pairs
    assert {name for name in made if name.startswith("accounts/")} == {f"accounts/{account}" for _, account in accounts}
    for role, account in accounts:
        password = made[f"accounts/{account}"]
        assert made[f"{role}.env"] == f"MLFLOW_TRACKING_USERNAME={account}\nMLFLOW_TRACKING_PASSWORD={password}\n"


def test_a_folder_that_git_would_commit_is_refused(tmp_path: Path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    done = make(tmp_path / "secrets")
    assert done.returncode == 2
    assert "git does not ignore it" in done.stderr
    assert contents(tmp_path / "secrets") == {}


@pytest.mark.parametrize("path", ["infra/compose/secrets/s3/s3.json", "infra/compose/.env", "infra/terraform/terraform.tfvars",
                                  "infra/terraform/terraform.tfstate", "infra/compose/data/postgres/x"])  # fmt: skip
def test_places_of_secrets_are_ignored_by_git(path: str):
    assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT, check=False).returncode == 0
