"""Postgres and MLflow started as the manifests say, on this machine; only places are this machine's."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.infra.checkers import KUBERNETES
from tests.infra.stack import container_of
from tests.s3_server import free_ports
from tests.server_process import is_well, server_process

BASE = KUBERNETES / "base"
EXPERIMENTS = "api/2.0/mlflow/experiments/search?max_results=1"
_STARTS_WITHIN = 240  # seconds; 15 to 35 on a free machine, and as much again where the databases are made


@dataclass(frozen=True)
class Postgres:
    """A running server; `owner` is the system's user that it runs as, since it refuses root."""

    binaries: Path
    folder: Path
    port: int
    owner: str | None
    password: str = field(repr=False)

    def run(self, *command: str, script: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """A command as the server's owner."""
        given = {"PATH": f"{self.binaries}:{os.environ['PATH']}", "PGPORT": str(self.port), "HOME": str(self.folder)}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, user=self.owner, input=script or None, cwd=self.folder,
            env=given | environment,
        )  # fmt: skip

    def query(self, database: str, statement: str, password: str | None = None) -> subprocess.CompletedProcess[str]:
        """A statement as MLflow's role, over TCP as from a pod."""
        words = ("psql", "--host=127.0.0.1", "--username=mlflow", "--tuples-only", "--no-align", "--command", statement)
        return self.run(*words, database, PGPASSWORD=password or self.password)

    @property
    def environment(self) -> dict[str, str]:
        """What a pod has that speaks with it as MLflow's role."""
        return {"PGHOST": "127.0.0.1", "PGUSER": "mlflow", "PGPASSWORD": self.password}


@contextmanager
def postgres_server(password: str) -> Iterator[Postgres]:
    """Postgres, made by the arguments of the manifest and its script; skips the test where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [
        Path(path).parent for path in [shutil.which("initdb")] if path
    ]
    if not found:
        pytest.skip("no Postgres is there (Debian: apt-get install postgresql), so that its script was not run")
    owner = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="dermaflow-postgres-"))  # pytest's own folders are closed to other users
    folder.chmod(0o755)
    if owner:
        account = pwd.getpwnam(owner)
        os.chown(folder, account.pw_uid, account.pw_gid)
    server = Postgres(found[-1], folder, free_ports(1)[0], owner, password)
    container = container_of("postgres/postgres.yaml", "StatefulSet")
    environment = {item["name"]: item.get("value", "") for item in container["env"]}
    made = server.run("initdb", "--username=postgres", *environment["POSTGRES_INITDB_ARGS"].split(), "--pgdata=data")
    assert made.returncode == 0, made.stderr
    options = f"-k {folder} -p {server.port} -c listen_addresses=127.0.0.1 {' '.join(container['args'])}"
    start = server.run("pg_ctl", "--pgdata=data", f"--options={options}", "--log=log", "--wait", "start")
    try:
        assert start.returncode == 0, (folder / "log").read_text()
        written = server.run("sh", "-c", 'umask 077; printf %s "$MLFLOW_PASSWORD" > password', MLFLOW_PASSWORD=password)
        assert written.returncode == 0
        script = (BASE / "postgres" / "databases.sh").read_text()
        done = server.run("sh", "-s", script=script, PGHOST=str(folder), MLFLOW_PASSWORD_FILE=str(folder / "password"))
        assert done.returncode == 0, done.stderr
        yield server
    finally:
        server.run("pg_ctl", "--pgdata=data", "--mode=immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def registry_server(
    folder: Path, postgres: Postgres, admin_password: str, artifacts: str, given: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of MLflow with the deployment's arguments; skips the test where its parts are not installed.

    Parameters
    ----------
    artifacts: where it lays them: a folder, or s3://bucket/prefix with `given`, the environment that reaches it.
    """
    missing = [name for name in ("flask_wtf", "psycopg2") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (`make setup-dev` does), so that MLflow was not started")
    folder.mkdir(parents=True, exist_ok=True)
    port, address = free_ports(1)[0], f"127.0.0.1:{postgres.port}"
    rights = (BASE / "mlflow" / "basic_auth.ini").read_text().replace("postgres:5432", address)
    assert "auth_cache_ttl_seconds = 60" in rights
    rights = rights.replace("auth_cache_ttl_seconds = 60", "auth_cache_ttl_seconds = 2")  # tests change passwords
    (folder / "basic_auth.ini").write_text(rights)
    placed = {"--host": "127.0.0.1", "--port": str(port), "--artifacts-destination": artifacts}
    container, arguments = container_of("mlflow/server.yaml", "Deployment"), []
    for argument in container["args"]:
        name, equals, value = argument.partition("=")
        arguments.append(f"{name}{equals}{placed.get(name, value).replace('postgres:5432', address)}")
    environment = {item["name"]: item["value"] for item in container["env"] if "value" in item} | {
        "HOME": str(folder),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "PGPASSWORD": postgres.password,
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-session-key-of-tests",
        **(given or {}),
    }
    command = [str(Path(sys.executable).with_name("mlflow")), "server", *arguments]
    url, kubelet = f"http://127.0.0.1:{port}", {"Host": "10.1.2.3:5000"}  # it asks by the pod's address

    def answers() -> bool:
        return is_well(f"{url}/health", kubelet)

    with server_process(command, folder / "log", answers, _STARTS_WITHIN, environment):
        yield url
