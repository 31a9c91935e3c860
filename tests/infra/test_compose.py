"""The local stack: Docker's own compose reads it; ports are this machine's alone; settings are those of the manifests."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from tests.infra import manifests
from tests.infra.checkers import INFRA, KUBERNETES, checker, documents, fails, passes
from tests.infra.stack import container_of
from tests.workspace import ROOT

FILE = INFRA / "compose" / "compose.yaml"
BASE = [item for path in (KUBERNETES / "base").rglob("*.yaml") for item in documents(path.read_text())]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """What compose makes of the file."""
    environment = {**os.environ, "DERMAFLOW_UID": "1000", "DERMAFLOW_GID": "1000"}
    return json.loads(
        passes(checker("docker-compose"), "--file", FILE, "--profile", "roles", "config", "--format", "json", env=environment)
    )


def test_without_the_script_it_says_what_to_run():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DERMAFLOW_")}
    assert "run infra/compose/up.sh" in fails(checker("docker-compose"), "--file", FILE, "config", "--quiet", env=environment)


def test_ports_are_bound_to_this_machine(config: dict[str, Any]):
    ports = [port for service in config["services"].values() for port in service.get("ports", ())]
    assert {(port["host_ip"], port["published"]) for port in ports} == {("127.0.0.1", "5000"), ("127.0.0.1", "8333")}
    assert config["networks"]["inside"]["internal"]
    assert "ports" not in config["services"]["postgres"]


def test_services_are_restricted(config: dict[str, Any]):
    for name, service in config["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"] == "1000:1000", name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert name in ("buckets", "roles") or "healthcheck" in service, name


def test_secrets_are_files_that_git_ignores(config: dict[str, Any]):
    for secret in config["secrets"].values():
        assert set(secret) <= {"name", "file"}
        assert secret["file"].startswith(str(INFRA / "compose" / "secrets"))
    for name, service in config["services"].items():
        given = {key for key in service.get("environment", {}) if key.endswith(("PASSWORD", "SECRET_KEY", "ACCESS_KEY"))}
        assert given == set(), name


def test_settings_are_those_of_the_manifests(config: dict[str, Any]):
    """The same images, the same S3 server, the same MLflow server: what works here works there."""
    images = {service["image"] for service in config["services"].values() if "dermaflow" not in service["image"]}
    assert images == {image for image in manifests.images(BASE) if not image.startswith("dermaflow-")}

    def without_places(arguments: list[str]) -> set[str]:
        return {argument for argument in arguments if not argument.startswith("-s3.config=")}

    s3 = container_of("s3/s3.yaml", "StatefulSet")
    assert without_places(config["services"]["s3"]["command"][1:]) == without_places(s3["args"])
    assert config["services"]["s3"]["environment"] == {item["name"]: item["value"] for item in s3["env"]}
    command = config["services"]["mlflow"]["command"][-1]
    for argument in container_of("mlflow/server.yaml", "Deployment")["args"]:
        option, _, value = argument.partition("=")
        if option == "--allowed-hosts":
            assert option in command
        else:
            assert argument.replace("$(ARTIFACTS_BUCKET)", "dermaflow-artifacts") in command, value


def test_roles_are_set_up_as_in_the_cluster(config: dict[str, Any]):
    """The same module with the same experiment, by an image that has what the module imports."""
    command = config["services"]["roles"]["command"][-1]
    there = dict(argument.split("=", 1) for argument in container_of("jobs/roles.yaml", "Job")["args"])
    assert f"--experiment={there['--experiment']}" in command
    mounted = {volume["target"]: volume["source"] for volume in config["services"]["roles"]["volumes"]}
    assert mounted["/etc/dermaflow/roles.yaml"] == str(ROOT / "mlflow" / "roles.yaml")
    assert mounted["/run/accounts"] == str(INFRA / "compose" / "secrets" / "mlflow" / "accounts")
    program = """if True:
        import sys, dermaflow.server_roles
        from importlib.metadata import packages_distributions
        of = packages_distributions()
        print(*{name.lower().replace("_", "-") for module in list(sys.modules) for name in of.get(module.split(".")[0], ())})"""
    needed = set(passes(sys.executable, "-c", program).split()) - {"dermaflow", "setuptools"}
    locked = (INFRA / "mlflow" / "requirements.txt").read_text()
    assert {name for name in needed if f"\n{name}==" not in f"\n{locked}"} == set()
    assert {"pydantic", "pyyaml"} <= needed


def test_dockerfile_of_mlflow_passes():
    passes(checker("hadolint"), INFRA / "mlflow" / "Dockerfile")


def test_mlflow_of_the_image_is_the_projects():
    """Server and client of one version: a newer server migrates the database, an older client can not read it then."""

    def version(name: str) -> str:
        lines = (ROOT / name).read_text().splitlines()
        return next(line.split("==")[1].split()[0] for line in lines if line.startswith("mlflow=="))

    assert version("infra/mlflow/requirements.txt") == version("requirements/runtime.txt")
