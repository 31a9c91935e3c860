"""Postgres as the manifests start it: MLflow's databases, and what is brought back from a backup."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.infra.checkers import KUBERNETES, documents
from tests.infra.manifests import of_kind
from tests.infra.registry_server import BASE, Postgres, postgres_server

PASSWORD = "a-database-password-of-tests"  # noqa: S105 - of a server that this test makes


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server(PASSWORD) as server:
        yield server


@pytest.mark.parametrize("database", ["mlflow", "mlflow_auth"])
def test_mlflow_owns_its_databases_and_no_more(postgres: Postgres, database: str):
    assert postgres.query(database, "CREATE TABLE t (x int); INSERT INTO t VALUES (1); DROP TABLE t").returncode == 0
    assert "permission denied" in postgres.query(database, "CREATE DATABASE other").stderr
    assert "permission denied" in postgres.query(database, "CREATE ROLE other").stderr
    assert "password authentication failed" in postgres.query(database, "SELECT 1", "guessed").stderr


def test_backup_can_be_brought_back(postgres: Postgres):
    """The line of the backup's pod, then that of README.md."""
    workload = of_kind(documents((BASE / "jobs" / "backup.yaml").read_text()), "CronJob")[0]
    dump = workload["spec"]["jobTemplate"]["spec"]["template"]["spec"]["initContainers"][0]
    assert postgres.query("mlflow", "CREATE TABLE kept (x int); INSERT INTO kept VALUES (42)").returncode == 0
    line = dump["args"][0].replace("/backup/", f"{postgres.folder}/")
    done = postgres.run(*dump["command"], line, **postgres.environment)
    assert done.returncode == 0, done.stderr
    assert (postgres.folder / "mlflow_auth.dump").stat().st_size > 0
    assert postgres.query("mlflow", "UPDATE kept SET x = 0").returncode == 0
    restore = re.search(r"(pg_restore [^<]*)<", (KUBERNETES / "README.md").read_text())
    assert restore
    back = postgres.run("sh", "-c", f"{restore[1]} < mlflow.dump", **postgres.environment)
    assert back.returncode == 0, back.stderr
    assert postgres.query("mlflow", "SELECT x FROM kept; DROP TABLE kept").stdout.startswith("42")
