"""The registry as it is deployed, MLflow with accounts over Postgres and S3: who may do what, and the whole flow by roles."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
import yaml

from components.register.core import Evidence, register
from dermaflow import registry
from dermaflow.access import open_registry
from dermaflow.champion import ENTRY_TAG, the_one_that_counts
from dermaflow.refusals import RefusedError
from dermaflow.roles import ROLES
from tests.infra.checkers import INFRA, documents
from tests.infra.deployment import S3_OF, Deployment, ServedRegistry, deployed, served
from tests.infra.manifests import of_kind
from tests.infra.registry_server import BASE, EXPERIMENTS, postgres_server
from tests.infra.stack import Stack, running_stack
from tests.registries import COMMIT, answering, lenient_policy, run_promotion
from tests.workspace import ROOT, Workspace, make_workspace

CANDIDATE, PRODUCTION = registry.CANDIDATE_MODEL, registry.PRODUCTION_MODEL
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "mlflow" / "README.md").read_text().split("### Who may do what")[1].splitlines()
    if re.match(r"\| [a-z]", line)
]
HEADER, ROWS = TABLE[0], {row[0]: dict(zip(TABLE[0][1:], row[1:], strict=True)) for row in TABLE[1:]}
ADMIN_API = "api/2.0/mlflow"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("deployment")) as made:
        yield made


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@dataclass(frozen=True)
class Told:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its JSON; fails with its own words."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def refused(self) -> str:
        """What it said when it was refused."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert "Traceback" not in self.err
        return " ".join(self.err.split())


@pytest.fixture(scope="module")
def command(deployment: Deployment, workspace: Workspace) -> Callable[..., Told]:
    """`dermaflow` as a role, on the deployment."""

    def call(role: str, *arguments: str) -> Told:
        with deployment.acting_as(role):
            done = workspace.call(*arguments)
        return Told(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="module")
def fresh(deployment: Deployment, workspace: Workspace) -> Deployment:
    """The deployment before there are roles, which answered the administrator alone."""
    strangers = [None, ("admin", "guessed-password"), deployment.account("ci")]
    assert [asked(deployment, account, "GET", EXPERIMENTS).status_code for account in strangers] == [401, 401, 401]
    return deployment


@pytest.fixture(scope="module")
def roles(fresh: Deployment, workspace: Workspace, command: Callable[..., Told]) -> Deployment:
    """The deployment once its roles are set up, as a user calls the command."""
    without = command("admin", *fresh.set_up[:3], "--json")
    assert all(f"DERMAFLOW_PASSWORD_DERMAFLOW_{role.upper()}" in without.refused for role in ROLES)
    assert len(command_json(command("admin", *fresh.set_up, "--check", "--json"), 1)["differs"]) == 9, "nothing was changed"
    done = workspace.run(*fresh.set_up, "--json", **fresh.environment("admin"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"]
    assert told["others"] == {"admin": "administrator"}
    for role in (*ROLES, "admin"):
        assert fresh.password(role) not in done.stdout + done.stderr
    return fresh


@dataclass(frozen=True)
class Flow:
    """A registry that was worked on by all roles, and what they were told."""

    served: ServedRegistry
    decision: dict[str, Any]
    promoted: dict[str, Any]
    second: dict[str, Any]  # the decision on another candidate, which was compared with the champion
    anchor: Path


@pytest.fixture(scope="module")
def flow(
    roles: Deployment, command: Callable[..., Told], finished_evidence: Evidence, tmp_path_factory: pytest.TempPathFactory
) -> Flow:
    """Registered and decided as ci, promoted as approver, anchored as auditor; then a second candidate as ci."""
    folder = tmp_path_factory.mktemp("flow")
    served = ServedRegistry(folder, url=roles.url)
    served.write_policy(lenient_policy())
    first = replace(finished_evidence, commit=COMMIT)
    better = replace(answering(first, folder / "better", right=1.0), run_id="better")
    with roles.acting_as("ci"):
        decision = run_promotion(served, first, folder / "first")
    promoted = command("approver", "promote", *sets(served), "--json").json
    assert command("auditor", "anchor", str(folder / "anchor.json"), *sets(served)).code == 0
    with roles.acting_as("ci"):
        second = run_promotion(served, better, folder / "second")
    return Flow(served, decision, promoted, second, folder / "anchor.json")


def sets(served: ServedRegistry) -> list[str]:
    return [word for value in served.sets() for word in ("--set", value)]


def command_json(told: Told, code: int) -> Any:
    assert told.code == code, (told.code, told.err)
    return json.loads(told.out)


def asked(deployment: Deployment, account: tuple[str, str] | None, method: str, place: str, **given: Any) -> requests.Response:
    return requests.request(method, f"{deployment.url}/{place}", auth=account, timeout=120, **given)


def test_server_answers_under_its_own_names_only(fresh: Deployment):
    for host, status in (("mlflow.dermaflow.svc:5000", 200), ("localhost:5000", 200), ("evil.example", 403)):
        answer = asked(fresh, fresh.account("admin"), "GET", EXPERIMENTS, headers={"Host": host})
        assert answer.status_code == status, host


def test_setting_up_again_finds_nothing_to_do(roles: Deployment, command: Callable[..., Told]):
    assert command("admin", *roles.set_up, "--json").json["done"] == []
    assert command("admin", *roles.set_up[:3], "--check", "--json").json["differs"] == [], "passwords are not needed again"


def test_what_is_too_much_is_taken_away_and_the_rest_left_alone(
    roles: Deployment, command: Callable[..., Told], workspace: Workspace
):
    admin = roles.account("admin")

    def call(method: str, place: str, **given: Any) -> Any:
        answer = asked(roles, admin, method, place, **({"params": given} if method == "GET" else {"json": given}))
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.text.strip() else {}

    def rights() -> dict[str, Any]:
        listed = call("GET", "api/3.0/mlflow/roles/list", workspace="default")["roles"]
        return {role["name"]: role for role in listed}

    call("POST", f"{ADMIN_API}/registered-models/create", name="of-another-team")
    ci = rights()["ci"]
    theirs = call("POST", "api/3.0/mlflow/roles/create", workspace="default", name="another-team")["role"]
    given = {"resource_type": "registered_model", "resource_pattern": "of-another-team", "permission": "MANAGE"}
    call("POST", "api/3.0/mlflow/roles/permissions/add", role_id=theirs["id"], **given)
    call("POST", "api/3.0/mlflow/roles/assign", username="dermaflow-auditor", role_id=theirs["id"])
    # too much: a right more and a right higher of the role, a right of the account's own, a role that it has not by the table
    call(
        "POST",
        "api/3.0/mlflow/roles/permissions/add",
        role_id=ci["id"],
        resource_type="workspace",
        resource_pattern="*",
        permission="USE",
    )
    right = next(item for item in ci["permissions"] if item["resource_pattern"] == PRODUCTION)
    call("PATCH", "api/3.0/mlflow/roles/permissions/update", role_permission_id=right["id"], permission="EDIT")
    own = {"username": "dermaflow-ci", "resource_type": "registered_model", "resource_id": PRODUCTION, "permission": "MANAGE"}
    call("POST", "api/3.0/mlflow/users/permissions/grant", **own)
    call("POST", "api/3.0/mlflow/roles/assign", username="dermaflow-ci", role_id=rights()["approver"]["id"])
    call("PATCH", f"{ADMIN_API}/users/update-password", username="dermaflow-auditor", password="a" * 12)
    time.sleep(3)  # until no process of the server remembers the one before

    told = command("admin", *roles.set_up, "--check", "--json")
    found = {(item["subject"], item["found"]) for item in command_json(told, 1)["differs"]}
    assert found == {
        ("role ci", "has USE on workspace *"),
        ("role ci", f"has EDIT on registered model {PRODUCTION}"),
        ("account dermaflow-ci", f"has MANAGE on registered model {PRODUCTION} of its own"),
        ("account dermaflow-ci", "has the role approver, and not by the table"),
        ("account dermaflow-auditor", "has another password than is given"),
    }
    assert command_json(command("admin", *roles.set_up, "--check", "--json"), 1) == json.loads(told.out), "it changed nothing"
    done = command("admin", *roles.set_up, "--json").json
    assert {(item["subject"], item["found"]) for item in done["done"]} == found
    assert rights()["another-team"]["permissions"][0]["permission"] == "MANAGE"
    users = {
        item["username"]: [role["name"] for role in item["roles"]] for item in call("GET", f"{ADMIN_API}/users/list")["users"]
    }
    assert set(users["dermaflow-auditor"]) == {"auditor", "another-team"}

    # a role of another team that reaches into ours: not ours to take away, so it is told and stays
    given = {"resource_type": "registered_model", "resource_pattern": "*", "permission": "EDIT"}
    call("POST", "api/3.0/mlflow/roles/permissions/add", role_id=theirs["id"], **given)
    told = command_json(command("admin", *roles.set_up, "--json"), 1)
    assert next((item["found"], item["mendable"]) for item in told["differs"]) == (
        "has EDIT on registered model * by the role another-team", False,
    )  # fmt: skip
    call("DELETE", "api/3.0/mlflow/roles/delete", role_id=theirs["id"])
    call("DELETE", f"{ADMIN_API}/registered-models/delete", name="of-another-team")
    assert command("admin", *roles.set_up, "--check", "--json").json["ok"]


def test_several_accounts_of_a_role_and_one_that_leaves(roles: Deployment, command: Callable[..., Told], tmp_path: Path):
    table = yaml.safe_load((ROOT / "mlflow" / "roles.yaml").read_text())
    table["accounts"]["approver"] += ["ann", "ben@example.org"]
    (tmp_path / "roles.yaml").write_text(yaml.safe_dump(table))
    (tmp_path / "ann").write_text("a-password-of-ann\n")
    call = (*roles.set_up[:3], "--table", str(tmp_path / "roles.yaml"), "--passwords", str(tmp_path), "--json")
    assert "ben@example.org: DERMAFLOW_PASSWORD_BEN_EXAMPLE_ORG" in command("admin", *call).refused
    (tmp_path / "ben@example.org").write_text("short")
    assert "ben@example.org has 5 characters; MLflow asks for 12" in command("admin", *call).refused
    (tmp_path / "ben@example.org").write_text("a-password-of-ben")
    assert command("admin", *call).json["ok"]
    alias = {"name": PRODUCTION, "key": "dermaflow.x", "value": "1"}
    people = [("ann", "a-password-of-ann"), ("ben@example.org", "a-password-of-ben")]

    def answers() -> list[int]:
        place = f"{ADMIN_API}/registered-models/set-tag"
        return [asked(roles, account, "POST", place, json=alias).status_code for account in people]

    assert answers() == [200, 200]
    assert command("admin", *roles.set_up, "--json").json["ok"]
    assert answers() == [403, 403]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("version: 1\naccounts: {ci: [a], approver: [a], auditor: []}", "a of approver is a of ci already"),
        ("version: 1\naccounts: {ci: [a.b], approver: [a-b], auditor: []}", "a-b of approver is a.b of ci already"),
        ("version: 1\naccounts: {ci: [../a], approver: [], auditor: []}", "accounts.ci.0: String should match pattern"),
        ("version: 1\naccounts: {ci: [], approver: []}", "accounts.auditor: Field required"),
        ("version: 1\naccounts: {ci: [], approver: [], auditor: [], admin: [me]}", "accounts.admin: Extra inputs"),
        ("version: 1\naccounts: {ci: [admin], approver: [], auditor: []}", "the table names admin, an administrator"),
    ],
)
def test_a_table_that_can_not_be_is_refused(
    roles: Deployment, command: Callable[..., Told], tmp_path: Path, table: str, told: str
):
    (tmp_path / "roles.yaml").write_text(table)
    assert told in command("admin", *roles.set_up, "--table", str(tmp_path / "roles.yaml")).refused
    assert command("admin", *roles.set_up, "--check", "--json").json["ok"]


def test_who_is_no_administrator_sets_up_nothing(roles: Deployment, command: Callable[..., Told], workspace: Workspace):
    assert "'dermaflow-approver' is no administrator" in command("approver", *roles.set_up).refused
    wrong = workspace.run(*roles.set_up, **(roles.environment("admin") | {"MLFLOW_TRACKING_PASSWORD": "guessed-password"}))
    assert "does not know the account 'admin', or this is not its password" in Told(2, wrong.stdout, wrong.stderr).refused
    assert "is no server" in command("admin", "roles").refused


def test_ci_records_a_decision_and_an_approver_acts_on_it(flow: Flow):
    """promote.mode is enabled: the account makes the difference."""
    assert (flow.decision["outcome"], flow.decision["champion_after"]) == ("would_promote", None)
    assert flow.decision["decided_by"] == "dermaflow-ci"
    assert (flow.promoted["outcome"], flow.promoted["champion"]) == ("promoted", {"name": PRODUCTION, "version": 1})
    assert flow.second["comparison"]["champion"] == {"name": PRODUCTION, "version": 1}, "ci may run the champion"
    assert flow.second["champion_after"] == {"name": PRODUCTION, "version": 1}


def test_an_auditor_sees_it_all_and_it_holds(flow: Flow, command: Callable[..., Told], tmp_path: Path):
    listed = command("auditor", "models", *sets(flow.served), "--json").json
    assert {(item["name"], item["version"]): item["aliases"] for item in listed} == {
        (PRODUCTION, 1): ["champion"], (CANDIDATE, 2): ["challenger"], (CANDIDATE, 1): [],
    }  # fmt: skip
    shown = command("auditor", "models", "show", f"{PRODUCTION}@champion", *sets(flow.served), "--json").json
    actors = {entry["kind"]: entry["actor"] for entry in shown["entries"]}
    assert (actors["registration"], actors["promotion"]) == ("dermaflow-ci", "dermaflow-approver")
    verified = command("auditor", "verify", "--all", "--anchor", str(flow.anchor), *sets(flow.served), "--json").json
    assert (verified["ok"], len(verified["versions"])) == (True, 3)
    dossier = command("auditor", "audit", PRODUCTION, "--out", str(tmp_path / "dossier"), *sets(flow.served), "--json").json
    assert dossier["ok"]
    assert command("auditor", "verify", str(tmp_path / "dossier"), "--json").json["ok"]


def test_files_come_through_the_server(flow: Flow, roles: Deployment):
    """The address of the object store that the server would hand out is one that people need not reach."""
    told = roles.log.read_text()
    assert "GET /api/2.0/mlflow-artifacts/artifacts/" in told
    assert "presigned" not in told


@pytest.mark.parametrize(
    ("role", "arguments", "whose"),
    [
        ("ci", ("promote",), "role approver"),
        ("ci", ("rollback", "--reason", "none"), "role approver"),
        (
            "ci",
            ("waive", "data_licence", f"{CANDIDATE}@challenger", "--reason", "none", "--until", "2999-01-01"),
            "role approver",
        ),
        ("auditor", ("promote",), "role approver"),
        ("auditor", ("rollback", "--reason", "none"), "role approver"),
    ],
)
def test_commands_of_another_role_write_nothing(
    flow: Flow, command: Callable[..., Told], tmp_path: Path, role: str, arguments: tuple[str, ...], whose: str
):
    head = ("anchor", str(tmp_path / "anchor.json"), *sets(flow.served), "--json")
    before = command("auditor", *head).json
    told = command(role, *arguments, *sets(flow.served)).refused
    assert f"does not let the account 'dermaflow-{role}' do this" in told
    assert whose in told
    assert "dermaflow roles --check" in told
    assert command("auditor", *head).json == before


def test_only_ci_registers(flow: Flow, roles: Deployment, finished_evidence: Evidence, tmp_path: Path):
    """Not even what is registered already, whose alias would be moved."""
    with roles.acting_as("auditor"), pytest.raises(RefusedError, match=r"'dermaflow-auditor'.*permission denied.*role ci"):
        register(replace(finished_evidence, commit=COMMIT), flow.served.settings, tmp_path / "registration")


def test_a_version_that_is_one_too_many_is_named(flow: Flow, roles: Deployment):
    """Two processes registered the same at once: the second may not delete its version, and says whose work that is."""
    with roles.acting_as("ci"):
        client, entries = open_registry(roles.url), flow.served.ledger.entries()
        entry = next(entry for entry in entries if entry.kind == "registration")
        tags = {ENTRY_TAG: str(entry.number)}
        created = client.create_model_version(CANDIDATE, f"models:/{CANDIDATE}/1", tags=tags)
        with pytest.raises(RefusedError, match=f"Version {created.version} is one too many.*'dermaflow-ci'.*administrator"):
            the_one_that_counts(client, created, entry)
    with roles.acting_as("admin"):
        open_registry(roles.url).delete_model_version(CANDIDATE, created.version)


def test_strangers_are_told_what_to_set(flow: Flow, roles: Deployment, workspace: Workspace):
    for command in (
        ("models",),
        ("verify",),
        ("models", "show", f"{PRODUCTION}@champion"),
        ("promote",),
        ("audit", PRODUCTION),
    ):
        for given in (
            {"MLFLOW_TRACKING_PASSWORD": "guessed-password"},
            {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""},
        ):
            with roles.acting_as("auditor"), pytest.MonkeyPatch.context() as patch:
                for name, value in given.items():
                    patch.setenv(name, value)
                done = workspace.call(*command, *sets(flow.served))
            told = Told(done.returncode, done.stdout, done.stderr).refused
            assert "does not know the account" in told, command
            assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in told


def test_an_account_without_a_role_is_not_told_that_there_are_no_models(flow: Flow, roles: Deployment, workspace: Workspace):
    user = {"username": "somebody", "password": "a-password-of-somebody"}
    assert asked(roles, roles.account("admin"), "POST", f"{ADMIN_API}/users/create", json=user).status_code == 200
    with roles.acting_as("auditor"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", user["username"])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", user["password"])
        done = workspace.call("models", *sets(flow.served))
    assert "does not let the account 'somebody' do this" in Told(done.returncode, done.stdout, done.stderr).refused


class Tried:
    """Each act of the table, tried on things made for it: true when it was done, false when it was refused."""

    def __init__(self, deployment: Deployment, flow: Flow) -> None:
        self.deployment, self.cleared = deployment, False
        with deployment.acting_as("admin"):
            self.client = open_registry(deployment.url)
            candidate = self.client.get_model_version(CANDIDATE, "1")
            self.run, self.experiment = candidate.run_id, self.client.get_run(candidate.run_id).info.experiment_id
            self.scratch = self.client.create_run(self.experiment).info.run_id
            self.client.log_text(self.scratch, "x", "a.txt")
            self.made = {
                name: str(self.client.create_model_version(name, f"models:/{CANDIDATE}/1").version)
                for name in (CANDIDATE, PRODUCTION)
            }
            files = self.client.list_artifacts(self.run, "evidence")
            self.file = f"{self.client.get_run(self.run).info.artifact_uri.removeprefix('mlflow-artifacts:/')}/{files[0].path}"
            self.source = candidate.source
        self.version = {name: {"name": name, "version": number} for name, number in self.made.items()}

    def clear(self) -> None:
        """Take away what was made for the tries."""
        self.cleared = True
        with self.deployment.acting_as("admin"):
            for name in (CANDIDATE, PRODUCTION):
                for version in self.client.search_model_versions(f"name = '{name}'"):
                    if "dermaflow.ledger_entry" not in version.tags or version.version == self.made[name]:
                        self.client.delete_model_version(name, version.version)
            self.client.delete_run(self.scratch)

    def act(self, act: str, account: tuple[str, str] | None) -> requests.Response:
        """The server's answer to an act of an account."""
        alias = {CANDIDATE: registry.CHALLENGER, PRODUCTION: registry.CHAMPION}
        at = {CANDIDATE: "2", PRODUCTION: "1"}  # where the alias is: it is moved to its place
        tagged, copied = {"key": "dermaflow.tried", "value": "1"}, f"models:/{CANDIDATE}/1"
        on_production = {"resource_type": "registered_model", "resource_id": PRODUCTION}
        other = "another-of-" + (account[0] if account else "nobody")
        on_scratch = f"{self._artifacts}/{self.scratch}/artifacts/a.txt"
        calls: dict[str, tuple[str, str, dict[str, Any]]] = {
            "read a version of dermaflow-candidate": ("GET", "model-versions/get", {"name": CANDIDATE, "version": "1"}),
            "read a version of dermaflow, and who is champion": (
                "GET", "registered-models/alias", {"name": PRODUCTION, "alias": registry.CHAMPION},
            ),
            "read a run with its metrics": ("GET", "runs/get", {"run_id": self.run}),
            "read a file of the evidence": ("GET", f"../mlflow-artifacts/artifacts/{self.file}", {}),
            "read a file of a registered model": (
                "GET", "../mlflow-artifacts/artifacts/" + self._model_file, {},
            ),
            "start a run": ("POST", "runs/create", {"experiment_id": self.experiment}),
            "write a metric or tag of a run": ("POST", "runs/set-tag", {"run_id": self.scratch, **tagged}),
            "write a file of a run, or over one": ("PUT", f"../mlflow-artifacts/artifacts/{on_scratch}", {}),
            "delete a run": ("POST", "runs/delete", {"run_id": self.scratch}),
            "delete a file of a run": ("DELETE", f"../mlflow-artifacts/artifacts/{on_scratch}", {}),
            "change the experiment's tags": (
                "POST", "experiments/set-experiment-tag", {"experiment_id": self.experiment, **tagged},
            ),
            "delete the experiment": ("POST", "experiments/delete", {"experiment_id": self.experiment}),
            "delete a model": ("DELETE", "registered-models/delete", {"name": PRODUCTION}),
            "make another model": ("POST", "registered-models/create", {"name": other}),
            "make another experiment": ("POST", "experiments/create", {"name": other}),
            "make an account": ("POST", "users/create", {"username": other, "password": "a-password-of-it"}),
            "give a right to somebody": (
                "POST", "../../3.0/mlflow/users/permissions/grant",
                {"username": "dermaflow-ci", **on_production, "permission": "EDIT"},
            ),
            "give itself a role": (
                "POST", "../../3.0/mlflow/roles/assign", {"username": account[0] if account else "x", "role_id": self._role_id},
            ),
        }  # fmt: skip
        for name in (CANDIDATE, PRODUCTION):
            calls |= {
                f"make a version of {name}": ("POST", "model-versions/create", {"name": name, "source": copied}),
                f"move the alias {alias[name]}": (
                    "POST", "registered-models/alias", {"name": name, "alias": alias[name], "version": at[name]},
                ),
                f"change a tag of a version of {name}": ("POST", "model-versions/set-tag", {**self.version[name], **tagged}),
                f"rename {name}": ("POST", "registered-models/rename", {"name": name, "new_name": f"{name}-renamed"}),
                f"delete a version of {name}": ("DELETE", "model-versions/delete", self.version[name]),
                f"take the alias {alias[name]} away": (
                    "DELETE", "registered-models/alias", {"name": name, "alias": alias[name]},
                ),
            }  # fmt: skip
        method, place, given = calls[act]
        body = {"params": given} if method == "GET" else {"data": b"y"} if method == "PUT" else {"json": given}
        url = requests.compat.urljoin(f"{ADMIN_API}/", place)
        return asked(self.deployment, account, method, url, **body)

    def on_ledger(self, act: str, identity: str | None) -> int:
        """S3's answer, as its status."""
        from botocore.exceptions import ClientError

        keys = {"aws_access_key_id": "dermaflow-auditor", "aws_secret_access_key": "a-guessed-secret-of-nobody"}
        client: Any = (
            self.deployment.stack.client(identity)
            if identity
            else boto3.client("s3", endpoint_url=self.deployment.stack.endpoint, region_name="us-east-1", **keys)
        )
        admin = self.deployment.stack.client("admin")
        entry = {"Bucket": "dermaflow-ledger", "Key": "entries/00000001.json"}
        version = admin.list_object_versions(Bucket=entry["Bucket"], Prefix=entry["Key"])["Versions"][0]["VersionId"]
        try:
            match act:
                case "read the ledger":
                    client.list_object_versions(Bucket=entry["Bucket"], Prefix="entries/")
                    client.get_object(**entry, VersionId=version)
                case "append to the ledger":
                    client.put_object(Bucket=entry["Bucket"], Key=f"tried/{identity}", Body=b"{}", IfNoneMatch="*")
                case _:
                    client.delete_object(**entry, VersionId=version)
        except ClientError as error:
            return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
        return 200

    @property
    def _artifacts(self) -> str:
        return self.file.split(f"/{self.run}/")[0]

    @property
    def _model_file(self) -> str:
        model = self.source.removeprefix("models:/")
        return f"{self._artifacts}/models/{model}/artifacts/MLmodel"

    @property
    def _role_id(self) -> int:
        listed = asked(self.deployment, self.deployment.account("admin"), "GET", "api/3.0/mlflow/roles/list?workspace=default")
        return next(int(role["id"]) for role in listed.json()["roles"] if role["name"] == "approver")


@pytest.fixture(scope="module")
def tried(roles: Deployment, flow: Flow) -> Iterator[Tried]:
    made = Tried(roles, flow)
    yield made
    if not made.cleared:
        made.clear()


def test_the_table_has_a_column_for_each_role():
    assert ["act", *ROLES, "nobody"] == HEADER
    assert len(ROWS) == len(TABLE) - 1 > 25
    assert {cell for row in ROWS.values() for cell in row.values()} == {"yes", "no"}


@pytest.mark.parametrize("act", ROWS)
def test_each_cell_of_the_table_is_as_it_says(roles: Deployment, tried: Tried, act: str):
    """Those who may not come first: what they were refused is still there for those who may."""
    for column, cell in sorted(ROWS[act].items(), key=lambda item: item[1]):
        if act.endswith("the ledger"):
            status = tried.on_ledger(act, S3_OF.get(column))
            assert status == (200 if cell == "yes" else 403), (act, column)
        elif column == "nobody":
            strangers = [None, ("dermaflow-ci", "guessed-password"), ("nobody-known", "guessed-password")]
            assert [tried.act(act, account).status_code for account in strangers] == [401, 401, 401], act
        else:
            answer = tried.act(act, roles.account(column))
            assert answer.status_code == (200 if cell == "yes" else 403), (act, column, answer.text)
            if act.startswith("rename") and cell == "yes":
                name = act.removeprefix("rename ")
                with roles.acting_as("admin"):
                    tried.client.rename_registered_model(f"{name}-renamed", name)


def test_after_all_these_tries_everything_holds(roles: Deployment, tried: Tried, flow: Flow, command: Callable[..., Told]):
    tried.clear()
    assert command("admin", *roles.set_up, "--check", "--json").json["ok"]
    assert command("auditor", "verify", "--all", "--anchor", str(flow.anchor), *sets(flow.served), "--json").json["ok"]


def test_backup_is_brought_back_into_empty_servers(
    roles: Deployment, flow: Flow, command: Callable[..., Told], workspace: Workspace, tmp_path: Path
):
    """By the line of the backup's pod, the line of README.md and infra/copy_buckets.py: all is there again, and holds."""

    def copied(stack: Stack, work: str) -> str:
        buckets = ("dermaflow-artifacts", "dermaflow-ledger")
        script = [sys.executable, str(INFRA / "copy_buckets.py"), work, str(tmp_path / "objects"), *buckets]
        done = subprocess.run(script, capture_output=True, text=True, check=False, env=stack.environment("admin"))
        assert done.returncode == 0, done.stderr
        return done.stdout

    backup = of_kind(documents((BASE / "jobs" / "backup.yaml").read_text()), "CronJob")[0]
    dump = backup["spec"]["jobTemplate"]["spec"]["template"]["spec"]["initContainers"][0]
    line = dump["args"][0].replace("/backup/", f"{roles.postgres.folder}/")
    assert roles.postgres.run(*dump["command"], line, **roles.postgres.environment).returncode == 0
    before = command("auditor", "anchor", str(tmp_path / "anchor.json"), *sets(flow.served), "--json").json
    saved = re.search(r"s3://dermaflow-ledger: (\d+) objects, \1 of them new", copied(roles.stack, "save"))
    assert saved
    assert int(saved[1]) >= before["number"]  # and what the table's acts may have put beside
    assert ", 0 of them new" in copied(roles.stack, "save"), "it goes on where it was"

    with (
        running_stack(tmp_path / "stack") as stack,
        postgres_server((stack.secrets / "postgres" / "mlflow-password").read_text()) as postgres,
    ):
        assert stack.job("buckets.py", "admin", LEDGER_MODE="GOVERNANCE", LEDGER_DAYS="1").returncode == 0
        copied(stack, "restore")
        restore = re.search(r"(pg_restore [^<]*)<", (BASE.parent / "README.md").read_text())
        assert restore
        for name in ("mlflow", "mlflow_auth"):
            shutil.copy(roles.postgres.folder / f"{name}.dump", postgres.folder)
            words = restore[1].replace("--dbname=mlflow ", f"--dbname={name} ")
            back = postgres.run("sh", "-c", f"{words} < {name}.dump", **postgres.environment)
            assert back.returncode == 0, back.stderr
        with served(tmp_path / "mlflow", postgres, stack) as url:
            again = replace(flow.served, url=url)
            as_admin = roles.environment("admin")
            assert workspace.run("roles", "--check", *sets(again)[:2], **as_admin).returncode == 0, "accounts came back too"
            keys = {key: value for key, value in stack.environment("auditor").items() if key.startswith("AWS_")}
            told = workspace.run(
                "verify",
                "--all",
                "--anchor",
                str(tmp_path / "anchor.json"),
                *sets(again),
                "--json",
                **roles.environment("auditor") | keys,
            )
            assert told.returncode == 0, told.stderr
            after = json.loads(told.stdout)
    assert len(after["versions"]) == 3
    assert after["ledger"]["head"] == {"number": before["number"], "digest": before["digest"]}
