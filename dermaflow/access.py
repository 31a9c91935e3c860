"""Opening a registry and its ledger: one that is there is not written to, so that many may at once, and who may only read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dermaflow import registry
from dermaflow.errors import InputError
from dermaflow.ledger import Ledger, ledger_of
from dermaflow.params import RegisterParams

if TYPE_CHECKING:
    from mlflow import MlflowClient


_Made = TypeVar("_Made")
MODELS = {
    registry.CANDIDATE_MODEL: "What the pipeline trains; the alias challenger is the newest candidate.",
    registry.PRODUCTION_MODEL: "What promotion copied here; the alias champion is in use.",
}


def ensure_model(client: MlflowClient, name: str) -> None:
    """Make one of both models where it is not there; another process may make it at the same moment."""
    _made_once(lambda: registry.ensure_model(client, name, MODELS[name]))


def experiment_id(client: MlflowClient, tracking_uri: str, name: str) -> str:
    """The experiment of this name, as `registry.experiment_id`; another process may make it at the same moment."""
    return _made_once(lambda: registry.experiment_id(client, tracking_uri, name))


def _made_once(make: Callable[[], _Made]) -> _Made:
    from mlflow.exceptions import MlflowException

    try:
        return make()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return make()  # it is there now


def files_through_server() -> None:
    """Let MLflow fetch files through its server, unless it is told otherwise: before a thread is started that does.

    By itself it asks for an address of the object store, which is one that the server knows and people need not reach.
    """
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")


def open_registry(tracking_uri: str) -> MlflowClient:
    """A client of the registry at `tracking_uri`; a SQLite file is made where there is none.

    Raises
    ------
    InputError
        when the place can not be reached, or not be written where there is none yet.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    files_through_server()
    is_new = tracking_uri.startswith(registry.SQLITE) and not Path(tracking_uri.removeprefix(registry.SQLITE)).exists()
    if is_new:
        return registry.connect(tracking_uri)
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri, tracking_uri)
    try:
        client.search_registered_models(max_results=1)
    except MlflowException as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"register.tracking_uri: {tracking_uri} does not answer: {first[:300]}") from error
    return client


def open_ledger(register: RegisterParams) -> Ledger:
    """The ledger of the registry that parameters name; raises InputError as `ledger_of`."""
    return ledger_of(register.tracking_uri)
