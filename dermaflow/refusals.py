"""What an MLflow server refuses, told to a person: which account, what was refused, and whose work it is."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dermaflow.errors import InputError
from dermaflow.ledger import account

CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
CI, APPROVER = "an account of the role ci", "an account of the role approver"
READER = "an account of any role"
ADMINISTRATOR = "the server's administrator"
_TOLD = (  # MLflow's client tells the status and the endpoint in one of these ways, and in no field
    re.compile(r"endpoint (?P<endpoint>\S+) failed with error code (?P<status>401|403)\b"),
    re.compile(r"\b(?P<status>401|403) Client Error: .* for url: (?P<endpoint>\S+)"),
)
_PREFIX = re.compile(r".*/(?:mlflow|mlflow-artifacts)/")


class RefusedError(InputError):
    """The MLflow server does not know the account, or does not let it do this: says which, and whose work it is."""


@contextmanager
def refusals_told(who: str) -> Iterator[None]:
    """Around work on a registry, or as a decorator of it: what the server refuses ends it with one message.

    Parameters
    ----------
    who: whose work it is, as a message says it after "it is the work of".

    Raises
    ------
    RefusedError
        when the server does not know the account, or the account may not do what it was about to.
    """
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        raise RefusedError(_sentence(*refused, who)) from error


def refusal(error: BaseException) -> tuple[str, str] | None:
    """Status (401, 403) and endpoint, where an MLflow server's refusal is what caused an error; None of any other."""
    seen: BaseException | None = error
    while seen is not None:
        for form in _TOLD:
            found = form.search(str(seen))
            if found:
                return found["status"], _PREFIX.sub("", found["endpoint"])
        seen = seen.__cause__ or seen.__context__
    return None


def _sentence(status: str, endpoint: str, who: str) -> str:
    mlflow = sys.modules.get("mlflow")
    server = f"register.tracking_uri: {mlflow.get_tracking_uri() if mlflow else 'the server'}"
    if status == "401":
        return (
            f"{server} does not know the account {account()!r}, or this is not its password; set {CREDENTIALS} to those of "
            f"{who}"
        )
    return (
        f"{server} does not let the account {account()!r} do this ({endpoint}: permission denied): it is the work of {who}. "
        f"Set {CREDENTIALS} to those of such an account (mlflow/README.md says who may do what), or let the server's "
        "administrator look at the rights: dermaflow roles --check"
    )
