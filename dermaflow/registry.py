"""The model registry: MLflow with two models, one that the pipeline writes and one that promotion copies into."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaflow.artifacts import ARTIFACT_FILE
from dermaflow.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE_MODEL = "dermaflow-candidate"
PRODUCTION_MODEL = "dermaflow"
CHALLENGER = "challenger"
CHAMPION = "champion"
TAG = "dermaflow."  # prefix of our tags
EVIDENCE_FOLDER = "evidence"
SQLITE = "sqlite:///"


def announce(tracking_uri: str) -> None:
    """Set what MLflow adds to the environment when it is told of a registry: before a thread is started that connects."""
    os.environ.update(dict.fromkeys(("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"), tracking_uri))


def connect(tracking_uri: str) -> MlflowClient:
    """A client of the registry at `tracking_uri`; a SQLite file is made where there is none.

    Raises
    ------
    InputError
        when the place can not be reached or written.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    if tracking_uri.startswith(SQLITE):
        _make_database(Path(tracking_uri.removeprefix(SQLITE)), tracking_uri)
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    client = mlflow.MlflowClient(tracking_uri, tracking_uri)
    try:
        client.search_registered_models(max_results=1)
    except MlflowException as error:
        raise InputError(f"register.tracking_uri: {tracking_uri} does not answer: {_first_line(error)}") from error
    return client


def experiment_id(client: MlflowClient, tracking_uri: str, name: str) -> str:
    """The experiment of this name, made where there is none; beside a SQLite file artifacts lie in `mlartifacts/`."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if tracking_uri.startswith(SQLITE):
        location = (Path(tracking_uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def ensure_model(client: MlflowClient, name: str, description: str) -> None:
    """Make a registered model where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description=description)


def version_of(client: MlflowClient, model: str, alias: str) -> ModelVersion | None:
    """The version that an alias points to, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model | no such alias
            return None
        raise


def find_version(client: MlflowClient, model: str, tag: str, value: str) -> ModelVersion | None:
    """The newest version of a model that carries a tag with this value, or None."""
    found = client.search_model_versions(f"name = '{model}' and tags.`{tag}` = '{value}'")
    return max(found, key=lambda version: int(version.version), default=None)


def evidence(client: MlflowClient, version: ModelVersion, name: str, scratch: Path) -> Path:
    """A folder of the evidence that was registered with a version, fetched into `scratch`.

    Raises
    ------
    InputError
        when it is not there.
    """
    from mlflow.exceptions import MlflowException

    scratch.mkdir(parents=True, exist_ok=True)
    run_id = version.tags.get(TAG + "mlflow_run_id", version.run_id)  # a champion is a copy: it names the candidate's run
    try:
        return Path(client.download_artifacts(run_id, f"{EVIDENCE_FOLDER}/{name}", str(scratch)))
    except (MlflowException, OSError) as error:
        raise InputError(
            f"{version.name} version {version.version} has no evidence {name!r} in MLflow run {run_id}: {_first_line(error)}"
        ) from error


def model_artifact(version: ModelVersion, scratch: Path) -> Path:
    """The Model artifact of a version, fetched into `scratch`; raises InputError when Dermaflow did not register it."""
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}", dst_path=str(scratch)))
    for path in folder.rglob(ARTIFACT_FILE):
        return path.parent
    raise InputError(f"{version.name} version {version.version} was not registered by Dermaflow: it holds no Model artifact")


def list_versions(client: MlflowClient) -> list[dict[str, Any]]:
    """Every version of both models, newest first: name, version, aliases, run_id, created (ms), tags."""
    rows = []
    for name in (PRODUCTION_MODEL, CANDIDATE_MODEL):
        found = client.search_model_versions(f"name = '{name}'")
        if not found:
            continue
        aliases: dict[str, list[str]] = {}
        for alias, version in client.get_registered_model(name).aliases.items():  # search returns versions without theirs
            aliases.setdefault(str(version), []).append(alias)
        rows += [
            {
                "name": name,
                "version": int(version.version),
                "aliases": sorted(aliases.get(str(version.version), [])),
                "run_id": version.run_id,
                "created_ms": version.creation_timestamp,
                "tags": dict(version.tags),
            }
            for version in sorted(found, key=lambda version: -int(version.version))
        ]
    return rows


def _make_database(path: Path, uri: str) -> None:
    """Make MLflow's SQLite file where there is none: whole, or one that is killed would leave half its tables."""
    import mlflow

    _make_folder(path.parent, uri)
    if path.exists():
        return
    with tempfile.TemporaryDirectory(prefix=".registry-", dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        mlflow.MlflowClient(f"{SQLITE}{made}", f"{SQLITE}{made}").search_registered_models(max_results=1)
        with suppress(FileExistsError):  # another process has made it
            os.link(made, path)


def _make_folder(folder: Path, uri: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".dermaflow-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"register.tracking_uri: can not write to {folder} ({uri}): {error.strerror}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
