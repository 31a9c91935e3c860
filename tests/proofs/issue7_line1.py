"""Issue 7, line 1: the whole flow by its roles, against real servers and on the embedded default; what each role may not do."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import yaml

from dermaflow.phantom import draw_phantoms
from tests.infra.deployment import Deployment, deployed
from tests.proofs.measuring import pytest_here
from tests.registries import lenient_policy
from tests.workspace import TINY, Workspace, make_workspace, sets

BOUND = (
    "against a real MLflow 3 server with auth, Postgres and S3: the whole flow as ci, promotion as approver, audit and verify "
    "as auditor; each role's forbidden acts are refused (table in the docs, each cell tested); the same flow on the embedded "
    "default"
)


def prove() -> tuple[str, bool]:
    """Every cell of the table and the flow by roles as tests; then `dermaflow run` itself as ci, on the server and embedded."""
    told, passed = pytest_here("tests/infra/test_roles.py")
    if not passed or "skipped" in told:
        return told, False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draw_phantoms(folder / "phantom", images=84, seed=7)
        with deployed(folder / "deployment") as server:
            made = _workspace(folder / "served", folder / "phantom")
            assert made.run(*server.set_up, **server.environment("admin")).returncode == 0
            served = _flow(made, f"register.tracking_uri={server.url}", server)
        made = _workspace(folder / "embedded", folder / "phantom")
        embedded = _flow(made, f"register.tracking_uri={made.registry}", None)
    held = served == ("would_promote", "promoted", True, True) and embedded == ("promoted", "already_champion", True, True)
    said = "pipeline {}, dermaflow promote {}, verify --all --anchor {}, audit {}"
    return f"{told}; server: {said.format(*served)}; embedded: {said.format(*embedded)}", held


def _workspace(path: Path, phantoms: Path) -> Workspace:
    made = make_workspace(path)
    (path / "data").mkdir()
    (path / "data" / "phantom").symlink_to(phantoms)
    (path / "mlflow" / "policy.yaml").write_text(
        yaml.safe_dump(lenient_policy(allow_dirty_commit=True).model_dump(mode="json"))
    )
    return made


def _flow(made: Workspace, registry: str, server: Deployment | None) -> tuple[str, str, bool, bool]:
    """What the pipeline decided, what a person's promotion came to, and whether verify and audit hold."""

    def told(role: str, *arguments: str) -> dict[str, object]:
        environment = server.environment(role) if server else {}
        done = made.run(*arguments, *sets(registry, "promote.mode=enabled"), "--json", **environment)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{arguments[0]} as {role}: {done.stderr[-2000:]}")
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    run = told("ci", "run", "--profile", "phantom", *sets(*TINY))
    promoted = told("approver", "promote")
    told("auditor", "anchor", "anchor.json")
    verified, dossier = told("auditor", "verify", "--all", "--anchor", "anchor.json"), told("auditor", "audit", "dermaflow")
    return str(run["outcome"]), str(promoted["outcome"]), verified["ok"] is True, dossier["ok"] is True
