"""The roles on an MLflow server: what each may do, which accounts have it (mlflow/roles.yaml), and their passwords."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from dermaflow.checked_yaml import read_settings
from dermaflow.errors import InputError
from dermaflow.params import Section
from dermaflow.registry import CANDIDATE_MODEL, PRODUCTION_MODEL

Role = Literal["ci", "approver", "auditor"]
Right = Literal["READ", "EDIT"]
ROLES: tuple[Role, ...] = get_args(Role)
DUTIES: dict[Role, str] = {
    "ci": "registers candidates and records decisions",
    "approver": "moves the champion",
    "auditor": "reads everything, changes nothing",
}
MODEL_RIGHTS: dict[Role, dict[str, Right]] = {
    "ci": {CANDIDATE_MODEL: "EDIT", PRODUCTION_MODEL: "READ"},
    "approver": {CANDIDATE_MODEL: "READ", PRODUCTION_MODEL: "EDIT"},
    "auditor": {CANDIDATE_MODEL: "READ", PRODUCTION_MODEL: "READ"},
}
EXPERIMENT_RIGHTS: dict[Role, Right] = {"ci": "EDIT", "approver": "READ", "auditor": "READ"}  # runs, their files, models' files
PASSWORD = "DERMAFLOW_PASSWORD_"  # noqa: S105 - prefix of variables, each followed by an account's name
SHORTEST_PASSWORD = 12  # characters; MLflow refuses shorter ones

Account = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")]  # it names a file and a variable too


class Accounts(Section):
    """The accounts of each role."""

    ci: tuple[Account, ...]
    approver: tuple[Account, ...]
    auditor: tuple[Account, ...]


class RoleTable(Section):
    """Who has which role: mlflow/roles.yaml."""

    version: Literal[1]
    accounts: Accounts

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        seen: dict[str, str] = {}
        for role, account in self.pairs:
            name = _variable(account)
            if name in seen:
                raise ValueError(f"{account} of {role} is {seen[name]} already; an account has one role, and a name of its own")
            seen[name] = f"{account} of {role}"
        return self

    @property
    def pairs(self) -> tuple[tuple[Role, str], ...]:
        """Each account with its role."""
        return tuple((role, account) for role in ROLES for account in getattr(self.accounts, role))


def read_table(path: Path) -> RoleTable:
    """The table; raises InputError when it can not be read, or names a fault in it."""
    return read_settings(path, RoleTable, missing="name another with --table; mlflow/roles.yaml is ours")


def read_passwords(accounts: Iterable[str], folder: Path | None) -> dict[str, str]:
    """Passwords of those accounts that one was given for.

    Each comes from the variable DERMAFLOW_PASSWORD_<ACCOUNT> (letters as capitals, everything else but digits as _), from the
    file that DERMAFLOW_PASSWORD_<ACCOUNT>_FILE names, or from the file of the account's name in `folder`; the first of these
    counts. A line's end behind a password is no part of it.

    Raises
    ------
    InputError
        when a file that is named can not be read, or a password is too short for MLflow.
    """
    found: dict[str, str] = {}
    for account in accounts:
        given = _given(account, folder)
        if given is None:
            continue
        place, password = given
        if len(password) < SHORTEST_PASSWORD:
            raise InputError(
                f"{place}: the password of {account} has {len(password)} characters; MLflow asks for {SHORTEST_PASSWORD}"
            )
        found[account] = password
    return found


def places_of(account: str, folder: Path | None) -> str:
    """Where a password of an account is looked for, for a message."""
    variable = _variable(account)
    return f"{variable}, {variable}_FILE, " + (
        "or a file of its name in --passwords DIR" if folder is None else str(folder / account)
    )


def _given(account: str, folder: Path | None) -> tuple[str, str] | None:
    variable = _variable(account)
    if variable in os.environ:
        return variable, os.environ[variable]
    named = os.environ.get(f"{variable}_FILE")
    if named is not None:
        return f"{variable}_FILE", _read(Path(named), f"{variable}_FILE")
    if folder is None or not (folder / account).exists():
        return None
    return str(folder / account), _read(folder / account, "--passwords")


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what}: {path} can not be read: {getattr(error, 'strerror', None) or 'it is no text'}") from error


def _variable(account: str) -> str:
    return PASSWORD + re.sub(r"[^A-Z0-9]", "_", account.upper())
