"""Postgres and MLflow as the manifests start them: real servers on this machine, where both are installed."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.infra.checkers import KUBERNETES, documents
from tests.infra.manifests import of_kind
from tests.infra.stack import arguments_of
from tests.s3_server import free_ports

BASE = KUBERNETES / "base"
PASSWORD, ADMIN = "a-database-password-of-tests", "an-admin-password-of-tests"
_STARTS_WITHIN = 180  # seconds; 15 to 35 on a free machine, and as much again where the databases are made


@dataclass(frozen=True)
class Postgres:
    """A running server; `owner` is the system's user that it runs as, since it refuses root."""

    binaries: Path
    folder: Path
    port: int
    owner: str | None

    def run(self, *command: str, script: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """A command as the server's owner."""
        given = {"PATH": f"{self.binaries}:{os.environ['PATH']}", "PGPORT": str(self.port), "HOME": str(self.folder)}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, user=self.owner, input=script or None, cwd=self.folder,
            env=given | environment,
        )  # fmt: skip

    def query(self, database: str, statement: str, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
        """A statement as MLflow's role, over TCP as from a pod."""
        words = ("psql", "--host=127.0.0.1", "--username=mlflow", "--tuples-only", "--no-align", "--command", statement)
        return self.run(*words, database, PGPASSWORD=password)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """Postgres, made by the arguments of the manifest and its script."""
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
    server = Postgres(found[-1], folder, free_ports(1)[0], owner)
    workload = of_kind(documents((BASE / "postgres" / "postgres.yaml").read_text()), "StatefulSet")[0]
    container = workload["spec"]["template"]["spec"]["containers"][0]
    environment = {item["name"]: item.get("value", "") for item in container["env"]}
    made = server.run("initdb", "--username=postgres", *environment["POSTGRES_INITDB_ARGS"].split(), "--pgdata=data")
    assert made.returncode == 0, made.stderr
    options = f"-k {folder} -p {server.port} -c listen_addresses=127.0.0.1 {' '.join(container['args'])}"
    start = server.run("pg_ctl", "--pgdata=data", f"--options={options}", "--log=log", "--wait", "start")
    try:
        assert start.returncode == 0, (folder / "log").read_text()
        password = server.run("sh", "-c", f"umask 077; printf %s {PASSWORD} > password")
        assert password.returncode == 0
        script = (BASE / "postgres" / "databases.sh").read_text()
        done = server.run("sh", "-s", script=script, PGHOST=str(folder), MLFLOW_PASSWORD_FILE=str(folder / "password"))
        assert done.returncode == 0, done.stderr
        yield server
    finally:
        server.run("pg_ctl", "--pgdata=data", "--mode=immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


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
    given = {"PGHOST": "127.0.0.1", "PGUSER": "mlflow", "PGPASSWORD": PASSWORD}
    done = postgres.run(*dump["command"], line, **given)
    assert done.returncode == 0, done.stderr
    assert (postgres.folder / "mlflow_auth.dump").stat().st_size > 0
    assert postgres.query("mlflow", "UPDATE kept SET x = 0").returncode == 0
    restore = re.search(r"(pg_restore [^<]*)<", (KUBERNETES / "README.md").read_text())
    assert restore
    back = postgres.run("sh", "-c", f"{restore[1]} < mlflow.dump", **given)
    assert back.returncode == 0, back.stderr
    assert postgres.query("mlflow", "SELECT x FROM kept; DROP TABLE kept").stdout.startswith("42")


@pytest.fixture(scope="module")
def mlflow_server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's server with the deployment's arguments; only places are this machine's."""
    missing = [name for name in ("flask_wtf", "psycopg2") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (`make setup-dev` does), so that MLflow was not started")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_ports(1)[0]
    address = f"127.0.0.1:{postgres.port}"
    (folder / "basic_auth.ini").write_text((BASE / "mlflow" / "basic_auth.ini").read_text().replace("postgres:5432", address))
    placed = {"--host": "127.0.0.1", "--port": str(port), "--artifacts-destination": str(folder / "artifacts")}
    arguments = []
    for argument in arguments_of("mlflow/server.yaml", "Deployment"):
        name, equals, value = argument.partition("=")
        arguments.append(f"{name}{equals}{placed.get(name, value).replace('postgres:5432', address)}")
    container = of_kind(documents((BASE / "mlflow" / "server.yaml").read_text()), "Deployment")[0]
    given = container["spec"]["template"]["spec"]["containers"][0]["env"]
    environment = {item["name"]: item["value"] for item in given if "value" in item} | {
        "HOME": str(folder),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "PGPASSWORD": PASSWORD,
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-session-key-of-tests",
    }
    command = [str(Path(sys.executable).with_name("mlflow")), "server", *arguments]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, start_new_session=True, env={**os.environ, **environment}
        ) as process,
    ):
        try:
            deadline, url = time.monotonic() + _STARTS_WITHIN, f"http://127.0.0.1:{port}"
            while not _healthy(url):
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
                time.sleep(0.5)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _healthy(url: str) -> bool:
    try:
        return (
            requests.get(f"{url}/health", headers={"Host": "10.1.2.3:5000"}, timeout=5).status_code == 200
        )  # as a kubelet asks
    except requests.ConnectionError:
        return False


EXPERIMENTS = "api/2.0/mlflow/experiments/search?max_results=1"


def test_mlflow_asks_for_a_password(mlflow_server: str):
    assert requests.get(f"{mlflow_server}/{EXPERIMENTS}", timeout=30).status_code == 401
    assert requests.get(f"{mlflow_server}/{EXPERIMENTS}", auth=("admin", "guessed-password"), timeout=30).status_code == 401
    assert requests.get(f"{mlflow_server}/{EXPERIMENTS}", auth=("admin", ADMIN), timeout=30).status_code == 200


def test_mlflow_answers_under_its_own_names_only(mlflow_server: str):
    for host, status in (("mlflow.dermaflow.svc:5000", 200), ("localhost:5000", 200), ("evil.example", 403)):
        answer = requests.get(f"{mlflow_server}/{EXPERIMENTS}", auth=("admin", ADMIN), headers={"Host": host}, timeout=30)
        assert answer.status_code == status, host


def test_a_new_user_has_no_rights(mlflow_server: str):
    user = {"username": "somebody", "password": "a-password-of-somebody"}
    made = requests.post(f"{mlflow_server}/api/2.0/mlflow/users/create", json=user, auth=("admin", ADMIN), timeout=30)
    assert made.status_code == 200, made.text
    for path, body in (("experiments/create", {"name": "mine"}), ("registered-models/create", {"name": "mine"})):
        answer = requests.post(f"{mlflow_server}/api/2.0/mlflow/{path}", json=body, auth=tuple(user.values()), timeout=30)
        assert answer.status_code == 403, (path, answer.text)
    read = requests.get(
        f"{mlflow_server}/api/2.0/mlflow/experiments/get?experiment_id=0", auth=tuple(user.values()), timeout=30
    )
    assert read.status_code == 403, read.text
