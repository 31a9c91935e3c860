"""Setting up the roles on an MLflow server that has accounts and workspaces: what differs from the table, and mending it.

Run again it finds nothing to do. Ours are both models, the experiment, the three roles, and what the table's accounts may do
with these; everything else on the server is left alone. `python -m dermaflow.server_roles` is for places that have not the
`dermaflow` command.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dermaflow.access import MODELS
from dermaflow.errors import DermaflowError, InputError
from dermaflow.ledger import account
from dermaflow.refusals import ADMINISTRATOR, CREDENTIALS, refusals_told
from dermaflow.roles import (
    DUTIES,
    EXPERIMENT_RIGHTS,
    MODEL_RIGHTS,
    ROLES,
    Role,
    RoleTable,
    places_of,
    read_passwords,
    read_table,
)

WORKSPACE = "default"  # of the server, in which the models lie
_USERS, _ROLES, _RIGHTS = "/api/2.0/mlflow/users/", "/api/3.0/mlflow/roles/", "/api/3.0/mlflow/users/permissions/"
_SERVER_INFO, _MODELS = "/api/3.0/mlflow/server-info", "/api/2.0/mlflow/registered-models/"
_EXPERIMENTS = "/api/2.0/mlflow/experiments/"
_MODEL, _EXPERIMENT = "registered_model", "experiment"  # MLflow's names of what rights are on
_OF_EXPERIMENT = (_EXPERIMENT, "run", "logged_model", "trace", "assessment")  # the last four reach into an experiment
_OF_MODEL = (_MODEL, "registered_model_version")
_ORDER = ("DENY", "NO_PERMISSIONS", "READ", "USE", "EDIT", "MANAGE")
_SECONDS = 60.0  # for one answer of the server
_ROUNDS = 4  # what is made in one is given rights in the next


@dataclass(frozen=True)
class Call:
    """What is asked of the server; passwords may be in it."""

    method: str
    endpoint: str
    given: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Difference:
    """One thing on the server that is not as the table has it.

    Attributes
    ----------
    subject: what it is about, as "account dermaflow-ci".
    found: what is there.
    wanted: what is to be there; or, where `mend` is None, what a person has to do.
    mend: what brings it about.
    """

    subject: str
    found: str
    wanted: str
    mend: Call | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `dermaflow roles --json` prints it."""
        return {"subject": self.subject, "found": self.found, "wanted": self.wanted, "mendable": self.mend is not None}


@dataclass(frozen=True)
class SetUp:
    """What was done, and what differs now.

    Attributes
    ----------
    others: accounts outside the table that may change models or experiment, and by what: administrators always may.
    """

    done: list[Difference]
    differs: list[Difference]
    others: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether all is as the table has it."""
        return not self.differs

    def to_dict(self) -> dict[str, Any]:
        """As `dermaflow roles --json` prints it."""
        done, differs = ([item.to_dict() for item in items] for items in (self.done, self.differs))
        return {"ok": self.ok, "done": done, "differs": differs, "others": self.others}


@refusals_told(ADMINISTRATOR)
def set_up(
    tracking_uri: str, experiment: str, table: RoleTable, passwords: Path | None = None, *, check: bool = False
) -> SetUp:
    """Make models, experiment, roles and accounts as the table has them; with `check`, only tell what differs.

    Acts as MLFLOW_TRACKING_USERNAME, who has to be an administrator of the server.

    Parameters
    ----------
    experiment: where the pipeline keeps its runs (register.experiment).
    passwords: a folder with a file for each account (`dermaflow.roles.read_passwords`).

    Raises
    ------
    InputError
        when the address is none of a server with accounts and workspaces, the account is no administrator, a new account has
        no password, or something of another stands in the way; then nothing was changed.
    RefusedError
        when the server does not know the administrator, or this is not its password.
    """
    given = read_passwords((name for _, name in table.pairs), passwords)
    server = _Server(tracking_uri.rstrip("/"), experiment, table, given)
    missing = [name for _, name in table.pairs if name not in server.accounts and name not in given]
    if missing and not check:
        told = "".join(f"\n  {name}: {places_of(name, passwords)}" for name in missing)
        raise InputError(
            f"there are new accounts in the table without a password; nothing was changed. Set for each one of:{told}"
        )
    done: list[Difference] = []
    for _ in range(0 if check else _ROUNDS):
        mendable = [item for item in server.differences() if item.mend]
        for item in mendable:
            server.mend(item)
            done.append(item)
        if not mendable:
            break
        server.read()
    return SetUp(done, list(server.differences()), server.others())


class _Server:
    """The server as its administrator sees it; `read` looks again."""

    def __init__(self, uri: str, experiment: str, table: RoleTable, passwords: Mapping[str, str]) -> None:
        self._uri, self._experiment, self._table, self._passwords = uri, experiment, table, passwords
        _require_administrator(uri)
        self.read()
        self._refuse_what_is_in_the_way()

    def read(self) -> None:
        """Look at what is there."""
        self.accounts: dict[str, dict[str, Any]] = {item["username"]: item for item in self._get(_USERS + "list")["users"]}
        roles = self._get(_ROLES + "list", workspace=WORKSPACE)["roles"]
        self._roles: dict[str, dict[str, Any]] = {item["name"]: item for item in roles if item["name"] in ROLES}
        self._models = {model for model in MODELS if self._found(_MODELS + "get", name=model)}
        there = self._found(_EXPERIMENTS + "get-by-name", experiment_name=self._experiment)
        self._experiment_info = there["experiment"] if there else None
        self._experiment_id = str(there["experiment"]["experiment_id"]) if there else None

    def mend(self, difference: Difference) -> None:
        """Let the server be as the table has it, in one respect."""
        assert difference.mend is not None
        call = difference.mend
        _checked(_ask(self._uri, call.method, call.endpoint, call.given), call.endpoint)

    def differences(self) -> Iterator[Difference]:
        """What is not as the table has it, as far as it can be told now; rights that follow from all of it come last."""
        found = [*self._of_things(), *self._of_roles(), *self._of_accounts(), *self._of_members()]
        yield from found
        if not any(item.mend for item in found):
            yield from self._of_effect()

    def others(self) -> dict[str, str]:
        """Accounts that are not in the table and may change something, and by what."""
        known, found = {name for _, name in self._table.pairs}, {}
        for name in self.accounts.keys() - known:
            rights = [f"{row['permission']} on {row['on']}" for row in self._beyond(name, "auditor")]
            if self.accounts[name]["is_admin"] or rights:
                found[name] = "administrator" if self.accounts[name]["is_admin"] else ", ".join(rights)
        return dict(sorted(found.items()))

    def _of_things(self) -> Iterator[Difference]:
        for model, description in MODELS.items():
            if model not in self._models:
                make = Call("POST", _MODELS + "create", {"name": model, "description": description})
                yield Difference(f"model {model}", "is not there", "is made", make)
        if self._experiment_id is None:
            make = Call("POST", _EXPERIMENTS + "create", {"name": self._experiment})
            yield Difference(f"experiment {self._experiment}", "is not there", "is made", make)

    def _of_roles(self) -> Iterator[Difference]:
        for role in ROLES:
            there = self._roles.get(role)
            if there is None:
                told = {"workspace": WORKSPACE, "name": role, "description": _description(role)}
                yield Difference(
                    f"role {role}", "is not there", f"is made: {DUTIES[role]}", Call("POST", _ROLES + "create", told)
                )
            else:
                yield from self._of_rights(role, there)

    def _of_rights(self, role: Role, there: Mapping[str, Any]) -> Iterator[Difference]:
        wanted = self._wanted(role)
        have = {(item["resource_type"], item["resource_pattern"]): item for item in there["permissions"]}
        for key, item in have.items():
            if key not in wanted:
                take = Call("DELETE", _ROLES + "permissions/remove", {"role_permission_id": item["id"]})
                yield Difference(f"role {role}", f"has {item['permission']} on {self._named(*key)}", "has it not", take)
        for key, right in wanted.items():
            old = have.get(key)
            if old is None:
                told = {"role_id": there["id"], "resource_type": key[0], "resource_pattern": key[1], "permission": right}
                give = Call("POST", _ROLES + "permissions/add", told)
                yield Difference(f"role {role}", f"has no right to {self._named(*key)}", f"has {right}", give)
            elif old["permission"] != right:
                change = Call("PATCH", _ROLES + "permissions/update", {"role_permission_id": old["id"], "permission": right})
                yield Difference(f"role {role}", f"has {old['permission']} on {self._named(*key)}", f"has {right}", change)

    def _of_accounts(self) -> Iterator[Difference]:
        for role, name in self._table.pairs:
            subject, password = f"account {name}", self._passwords.get(name)
            told = {"username": name, "password": password}
            if name not in self.accounts:
                yield Difference(
                    subject, "is not there", f"is made, for the role {role}", Call("POST", _USERS + "create", told)
                )
                continue
            if password is not None and not self._knows(name, password):
                change = Call("PATCH", _USERS + "update-password", told)
                yield Difference(subject, "has another password than is given", "has the one that is given", change)
            for row in self._beyond(name, role):
                has = f"has {row['permission']} on {row['on']}"
                if row["own"]:
                    of = {"username": name, "resource_type": row["resource_type"], "resource_id": row["resource_pattern"]}
                    yield Difference(subject, f"{has} of its own", "has it not", Call("POST", _RIGHTS + "revoke", of))
                else:
                    told_by_hand = "take it out of that role, or out of the table; the role is another's, and is left alone"
                    yield Difference(subject, f"{has} by the role {row['role']}", told_by_hand)

    def _of_members(self) -> Iterator[Difference]:
        for role, there in self._roles.items():
            meant = {name for other, name in self._table.pairs if other == role}
            has = {name for name, item in self.accounts.items() if any(one["id"] == there["id"] for one in item["roles"])}
            for name in sorted((meant & self.accounts.keys()) - has):
                give = Call("POST", _ROLES + "assign", {"username": name, "role_id": there["id"]})
                yield Difference(f"account {name}", f"has not the role {role}", "has it", give)
            for name in sorted(has - meant):
                take = Call("DELETE", _ROLES + "unassign", {"username": name, "role_id": there["id"]})
                yield Difference(f"account {name}", f"has the role {role}, and not by the table", "has it not", take)

    def _of_effect(self) -> Iterator[Difference]:
        """What the server makes of all rights together: it may be set up to give everybody more."""
        for role, name in self._table.pairs:
            if name not in self.accounts:
                continue
            for key, right in self._wanted(role).items():
                has = self._get(_RIGHTS + "get", username=name, resource_type=key[0], resource_id=key[1])["permission"]
                if has != right:
                    told = (
                        f"{right}: see to default_permission and grant_default_workspace_access in the server's basic_auth.ini"
                    )
                    yield Difference(f"account {name}", f"has {has} on {self._named(*key)} all in all", told)

    def _wanted(self, role: Role) -> dict[tuple[str, str], str]:
        """The rights of a role, by kind and pattern; without the experiment as long as it is not there."""
        rights = {(_MODEL, model): str(right) for model, right in MODEL_RIGHTS[role].items()}
        return rights | ({(_EXPERIMENT, self._experiment_id): EXPERIMENT_RIGHTS[role]} if self._experiment_id else {})

    def _beyond(self, name: str, role: Role) -> Iterator[dict[str, Any]]:
        """What an account may do with what is ours, beyond a role, by roles that are not ours; `own`: given to it alone."""
        synthetic = f"__user_{self.accounts[name]['id']}__"  # MLflow's name for the role that holds what one account was given
        ours = {there["id"] for there in self._roles.values()}
        for other in self.accounts[name]["roles"]:
            if other["workspace"] != WORKSPACE or other["id"] in ours:
                continue
            for row in other["permissions"]:
                kind, pattern = row["resource_type"], row["resource_pattern"]
                most = self._most(role, kind, pattern)
                if most is not None and _ORDER.index(row["permission"]) > _ORDER.index(most):
                    yield {**row, "on": self._named(kind, pattern), "own": other["name"] == synthetic, "role": other["name"]}

    def _most(self, role: Role, kind: str, pattern: str) -> str | None:
        """The most that an account of a role may be given on something; None of what is not ours."""
        if kind == "workspace":
            return "EDIT"  # less than MANAGE, which makes an administrator of the workspace
        if kind in _OF_EXPERIMENT and pattern in ("*", self._experiment_id):
            return EXPERIMENT_RIGHTS[role]
        if kind in _OF_MODEL and (pattern == "*" or pattern in MODELS):
            rights: Mapping[str, str] = MODEL_RIGHTS[role]
            return rights.get(pattern) or min(rights.values(), key=_ORDER.index)
        return None

    def _named(self, kind: str, pattern: str) -> str:
        ours = kind == _EXPERIMENT and pattern == self._experiment_id
        return f"{kind.replace('_', ' ')} {self._experiment if ours else pattern}"

    def _knows(self, name: str, password: str) -> bool:
        return bool(_ask(self._uri, "GET", _USERS + "current", account=(name, password)).status_code == 200)

    def _get(self, endpoint: str, **given: str) -> Any:
        return _checked(_ask(self._uri, "GET", endpoint, given), endpoint).json()

    def _found(self, endpoint: str, **given: str) -> Any:
        """An answer; None where there is no such thing."""
        answer = _ask(self._uri, "GET", endpoint, given)
        return None if answer.status_code == 404 else _checked(answer, endpoint).json()

    def _refuse_what_is_in_the_way(self) -> None:
        for _, name in self._table.pairs:
            if name in self.accounts and self.accounts[name]["is_admin"]:
                raise InputError(
                    f"the table names {name}, an administrator of {self._uri}, who may do everything whatever its role; name "
                    "another account. Nothing was changed"
                )
        for role, there in self._roles.items():
            if there["description"] != _description(role):  # type: ignore[arg-type]
                raise InputError(
                    f"{self._uri} has a role {role} that this command did not make: its description is "
                    f"{there['description']!r}. Rename it, or let it be ours by the description "
                    f"{_description(role)!r}. Nothing was changed"  # type: ignore[arg-type]
                )
        if self._experiment_info is not None and self._experiment_info["lifecycle_stage"] != "active":
            raise InputError(
                f"register.experiment: {self._experiment} was deleted on {self._uri}; restore it (mlflow experiments restore "
                f"-x {self._experiment_id}), or name another. Nothing was changed"
            )


def _description(role: Role) -> str:
    """By which a role is known as ours."""
    return f"Dermaflow: {DUTIES[role]}"


def _require_administrator(uri: str) -> None:
    """Refuse what is no server with accounts and workspaces, and who is no administrator of it."""
    if not uri.startswith(("http://", "https://")):
        raise InputError(
            f"register.tracking_uri: {uri} is no server, and only a server has roles: "
            "--set register.tracking_uri=http(s)://HOST:PORT"
        )
    if not all(os.environ.get(name) for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")):
        raise InputError(f"set {CREDENTIALS} to those of {ADMINISTRATOR}")
    info = _ask(uri, "GET", _SERVER_INFO)
    if info.status_code != 200 or not info.json().get("workspaces_enabled"):
        raise InputError(
            f"register.tracking_uri: {uri} is no MLflow 3 server with workspaces, and without these every account may make "
            "models; start it with --enable-workspaces (mlflow/README.md)"
        )
    answer = _ask(uri, "GET", _USERS + "current")
    if answer.status_code == 404:
        raise InputError(
            f"register.tracking_uri: {uri} has no accounts; start it with --app-name basic-auth (mlflow/README.md)"
        )
    if not _checked(answer, _USERS + "current").json()["user"]["is_admin"]:
        raise InputError(
            f"register.tracking_uri: {account()!r} is no administrator of {uri}; set {CREDENTIALS} to those of one"
        )


def _ask(
    uri: str, method: str, endpoint: str, given: Mapping[str, Any] | None = None, account: tuple[str, str] | None = None
) -> Any:
    """A server's answer, whatever its status; by default to the account of the environment."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    mlflow.set_tracking_uri(uri)
    credentials = get_default_host_creds(uri)
    if account is not None:
        credentials.username, credentials.password = account
    told = {"params" if method == "GET" else "json": dict(given or {})}
    try:
        return http_request(credentials, endpoint, method, timeout=_SECONDS, max_retries=1, **told)
    except MlflowException as error:
        raise InputError(f"register.tracking_uri: {uri} does not answer: {str(error).splitlines()[0][:300]}") from error


def _checked(answer: Any, endpoint: str) -> Any:
    """An answer that is in order; raises MLflow's exception otherwise."""
    from mlflow.utils.rest_utils import verify_rest_response

    return verify_rest_response(answer, endpoint)


def main() -> int:
    """The shell's form: prints what was done and what differs as JSON; 0 in order, 1 something differs, 2 refused."""
    parser = argparse.ArgumentParser(description="Set up the roles of Dermaflow on an MLflow server, as its administrator.")
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--passwords", type=Path)
    parser.add_argument("--check", action="store_true")
    told = parser.parse_args()
    try:
        found = set_up(told.tracking_uri, told.experiment, read_table(told.table), told.passwords, check=told.check)
    except DermaflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found.to_dict(), indent=1))
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main())
