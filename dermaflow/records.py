"""What a registry holds, read-only, for checks: the same whether it is asked of MLflow or lies in an exported dossier.

Nothing is kept from one check to the next: records are opened anew for each, and read the versions of a model once.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dermaflow import registry
from dermaflow.artifacts import file_digest
from dermaflow.champion import ENTRY_TAG
from dermaflow.errors import InputError
from dermaflow.ledger import Entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

ACTIVE = "active"  # the stage of a run that was not deleted
_NOT_THE_MODELS = ("__pycache__", "registered_model_meta")  # what Python and MLflow write into a model's folder that they read


class Version(Protocol):
    """A version of a registered model, as far as checks look at it; MLflow's own class is one."""

    name: Any
    version: Any
    tags: Any
    description: Any
    source: Any
    run_id: Any


@dataclass(frozen=True)
class Run:
    """What MLflow says of a run: its stage (ACTIVE, or deleted), metrics and parameters."""

    stage: str
    metrics: Mapping[str, float]
    params: Mapping[str, str]


class Records(Protocol):
    """Versions, runs and files of both models. What can not be had is an InputError."""

    def versions(self, model: str) -> Sequence[Version]:
        """Every version of a model, the first one first."""

    def aliases(self, model: str) -> Mapping[str, str]:
        """The version that each alias of a model points to, by the alias."""

    def run(self, run_id: str) -> Run:
        """A run; InputError where it is gone."""

    def evidence(self, run_id: str, place: str, scratch: Path) -> Path:
        """A file or folder of the evidence in a run ("": all of it), laid below `scratch` or where it lies already."""

    def model_files(self, version: Version) -> Mapping[str, str]:
        """Digest of each file of a version's model."""


def version_named(records: Records, model: str, number: str | int) -> Version:
    """A version by its number; raises InputError where there is none."""
    found = next((version for version in records.versions(model) if str(version.version) == str(number)), None)
    if found is None:
        raise InputError(f"{model} version {number} is not in the registry any more")
    return found


def version_with(records: Records, model: str, alias: str) -> Version | None:
    """The version that an alias points to, or None."""
    number = records.aliases(model).get(alias)
    return None if number is None else version_named(records, model, number)


def made_for(records: Records, model: str, entry: Entry) -> Version | None:
    """The version that was made for an entry of the ledger, if it was made by now; of several the first counts."""
    number = str(entry.number)
    return next((version for version in records.versions(model) if version.tags.get(ENTRY_TAG) == number), None)


class Registered:
    """The records of an MLflow registry."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self._found: dict[str, tuple[Mapping[str, str], Sequence[Version]]] = {}

    def versions(self, model: str) -> Sequence[Version]:
        """Every version of a model, the first one first; read once."""
        return self._read(model)[1]

    def aliases(self, model: str) -> Mapping[str, str]:
        """The version that each alias points to, as it was before the versions were read: each is among them."""
        return self._read(model)[0]

    def run(self, run_id: str) -> Run:
        """A run of MLflow, deleted ones too as long as MLflow has them."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_run(run_id)
        except MlflowException as error:
            raise InputError(f"MLflow run {run_id} is gone: {_first_line(error)}") from error
        return Run(found.info.lifecycle_stage, found.data.metrics, found.data.params)

    def evidence(self, run_id: str, place: str, scratch: Path) -> Path:
        """Fetched into `scratch`."""
        from mlflow.exceptions import MlflowException

        scratch.mkdir(parents=True, exist_ok=True)
        whole = f"{registry.EVIDENCE_FOLDER}/{place}".rstrip("/")
        try:
            return Path(self.client.download_artifacts(run_id, whole, str(scratch)))
        except (MlflowException, OSError) as error:
            raise InputError(f"{whole} of MLflow run {run_id} can not be had: {_first_line(error)}") from error

    def model_files(self, version: Version) -> Mapping[str, str]:
        """Of the model as it is stored now."""
        from mlflow.exceptions import MlflowException

        try:
            return model_files(f"models:/{version.name}/{version.version}")
        except (MlflowException, OSError) as error:
            raise InputError(f"its model can not be had: {_first_line(error)}") from error

    def _read(self, model: str) -> tuple[Mapping[str, str], Sequence[Version]]:
        if model not in self._found:
            aliases = self._aliases(model)
            with collection_paused():
                versions = sorted(self._pages(model), key=lambda version: int(version.version))
            self._found[model] = aliases, versions
        return self._found[model]

    def _aliases(self, model: str) -> Mapping[str, str]:
        from mlflow.exceptions import MlflowException

        try:
            return {name: str(at) for name, at in self.client.get_registered_model(model).aliases.items()}
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # no such model yet
                return {}
            raise

    def _pages(self, model: str) -> Iterator[Version]:
        position = None
        while True:
            page = self.client.search_model_versions(f"name = '{model}'", page_token=position)
            yield from page
            position = page.token
            if not position:
                return


def model_files(uri: str) -> dict[str, str]:
    """Digest of each file of a model that MLflow stores, by its place in the model's folder."""
    import mlflow

    with tempfile.TemporaryDirectory() as scratch:
        return files_of(Path(mlflow.artifacts.download_artifacts(uri, dst_path=scratch)))


def files_of(folder: Path) -> dict[str, str]:
    """Digest of each file below a folder, by its place there."""
    names = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name.as_posix(): file_digest(path) for name, path in names.items() if not set(name.parts) & set(_NOT_THE_MODELS)}


@contextmanager
def collection_paused() -> Iterator[None]:
    """Without Python's garbage collection, while many versions are read: it looks at all that MLflow's database layer makes.

    Of 1,000 versions that is 37,000 objects, and more than half of the time; none of them is garbage.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
