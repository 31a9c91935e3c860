"""The whole registry as it is deployed, on this machine: S3 with the locked ledger, Postgres, MLflow with accounts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.infra.registry_server import Postgres, postgres_server, registry_server
from tests.infra.stack import Stack, running_stack
from tests.registries import Registry

LEDGER = "s3://dermaflow-ledger/entries"
S3_OF = {"ci": "register", "approver": "approver", "auditor": "auditor"}  # identities of infra/secrets.sh, by role
ARTIFACTS = "s3://dermaflow-artifacts/mlflow"


@dataclass(frozen=True)
class Deployment:
    """A running registry and the secrets of its accounts."""

    url: str
    stack: Stack
    postgres: Postgres
    log: Path  # of MLflow

    def password(self, role: str) -> str:
        """The password of a role's account, or of the administrator."""
        name = "admin-password" if role == "admin" else f"accounts/dermaflow-{role}"
        return (self.stack.secrets / "mlflow" / name).read_text()

    def account(self, role: str) -> tuple[str, str]:
        """Name and password."""
        return ("admin" if role == "admin" else f"dermaflow-{role}", self.password(role))

    def environment(self, role: str) -> dict[str, str]:
        """What a process has that acts as a role, or as the administrator, who has nothing to do with the ledger."""
        name, password = self.account(role)
        ledger = {}
        if role in S3_OF:
            ledger = {key: value for key, value in self.stack.environment(S3_OF[role]).items() if key.startswith("AWS_")}
        return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password, "DERMAFLOW_LEDGER": LEDGER, **ledger}

    @contextmanager
    def acting_as(self, role: str) -> Iterator[None]:
        """This process, as a role."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        with patch.dict(os.environ, {**kept, **self.environment(role)}, clear=True):
            yield

    @property
    def set_up(self) -> tuple[str, ...]:
        """`dermaflow roles` as the administrator calls it."""
        accounts = self.stack.secrets / "mlflow" / "accounts"
        return ("roles", "--set", f"register.tracking_uri={self.url}", "--passwords", str(accounts))


@dataclass(frozen=True)
class ServedRegistry(Registry):
    """A deployment's registry, as tests of registries use one; its folder holds the policy alone."""

    url: str = field(default="", kw_only=True)

    @property
    def uri(self) -> str:
        """The server's address."""
        return self.url

    @property
    def settings(self) -> Any:
        """What register and promote are told of it: the experiment is the one that the roles have rights to."""
        return self.params().register_

    def sets(self) -> list[str]:
        """Values for `--set`."""
        return [f"register.tracking_uri={self.url}", f"promote.policy={self.policy}", "promote.mode=enabled"]


@contextmanager
def deployed(folder: Path) -> Iterator[Deployment]:
    """Everything started as the manifests say, buckets made, roles not yet set up; skips the test where Postgres is missing."""
    with running_stack(folder / "stack") as stack:
        made = stack.job("buckets.py", "admin", LEDGER_MODE="GOVERNANCE", LEDGER_DAYS="1")
        assert made.returncode == 0, made.stderr
        with (
            postgres_server((stack.secrets / "postgres" / "mlflow-password").read_text()) as postgres,
            served(folder / "mlflow", postgres, stack) as url,
        ):
            yield Deployment(url, stack, postgres, folder / "mlflow" / "log")


@contextmanager
def served(folder: Path, postgres: Postgres, stack: Stack) -> Iterator[str]:
    """MLflow over a Postgres, with its artifacts in a stack's S3."""
    admin = (stack.secrets / "mlflow" / "admin-password").read_text()
    aws = {key: value for key, value in stack.environment("mlflow").items() if key.startswith("AWS_")}
    with registry_server(folder, postgres, admin, ARTIFACTS, aws) as url:
        yield url
