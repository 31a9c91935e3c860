"""Running the pipeline on Kubeflow Pipelines, by kfp's own client: submit, follow, cancel.

Where the API is, and who asks, is told when a command is called: --host or KF_PIPELINES_ENDPOINT (without either, the cluster
that this process runs in, or that of the kubeconfig), KF_PIPELINES_TOKEN or KF_PIPELINES_TOKEN_FILE, KF_PIPELINES_COOKIES,
KF_PIPELINES_CA. None of them is kept, printed or put into an error.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dermaflow import kubeflow, weights
from dermaflow.artifacts import file_digest
from dermaflow.errors import GateError, InputError
from dermaflow.params import Params
from dermaflow.registry import SQLITE
from dermaflow.storage import S3
from pipelines import graph, preflight, provision
from pipelines.images import LOCK, ImagesLock, require_released
from pipelines.training import PIPELINE_NAME

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_POLL = 5.0  # seconds between two looks at a run
_PATIENCE = 300.0  # seconds for which an API that does not answer is asked again while a run is followed
_TIMEOUT = 30.0  # seconds for one answer
_SHORT = 12  # hex digits of a digest that tell versions apart
_HOSTS = (
    "give --host URL or set KF_PIPELINES_ENDPOINT (kubectl port-forward svc/ml-pipeline-ui 8080:80, then http://localhost:8080)"
)


@dataclass(frozen=True)
class Cluster:
    """A KFP backend that answers: kfp's client, the namespace (None where it has but one user), and what it says of itself."""

    client: Any
    namespace: str | None
    host: str
    about: str

    def link(self, run_id: str) -> str:
        """Where a person finds the run."""
        return kubeflow.run_page(self.host, run_id)


@dataclass(frozen=True)
class Uploaded:
    """A version of the pipeline that the backend has."""

    pipeline_id: str
    version_id: str
    name: str
    digest: str  # of the IR

    def parameters(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of a run of it."""
        return {**arguments, "compiled_digest": self.digest}


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its state, and where it did not succeed, the step that failed and its last words."""

    run_id: str
    state: str
    step: str | None = None
    message: str | None = None

    @property
    def exit_code(self) -> int:
        """Of the command that followed it."""
        return 0 if self.state == "SUCCEEDED" else 1


def connect(host: str | None = None, namespace: str | None = None) -> Cluster:
    """Reach the API.

    Raises
    ------
    InputError
        when no API is named, or it does not answer, or it does not let this user in.
    """
    import kfp
    import kfp_server_api

    named = host or os.environ.get("KF_PIPELINES_ENDPOINT")
    space = namespace or provision.read_table().run.namespace
    with _quiet(), _faults("the KFP API", named):
        client = kfp.Client(host=named, namespace=space, **kubeflow.credentials())
        url = str(client._existing_config.host)  # noqa: SLF001 - what kfp took from cluster or kubeconfig, it tells nowhere else
        if not named and url == kfp_server_api.Configuration().host:
            raise InputError(f"no KFP API is named, and there is neither a cluster around nor a kubeconfig; {_HOSTS}")
        health = client._healthz_api.healthz_service_get_healthz(_request_timeout=_TIMEOUT)  # noqa: SLF001 - its own repeats for 25 s
        if not health.multi_user:  # a backend of one user refuses a namespace
            client._context_setting["namespace"] = ""  # noqa: SLF001 - as kfp.Client does without one
    store = f", pipelines kept in its {health.pipeline_store}" if health.pipeline_store else ""
    about = f"v2beta1, {f'many users, namespace {space}' if health.multi_user else 'one user'}{store}"
    return Cluster(client, space if health.multi_user else None, url, about)


def require_reachable(params: Params, table: provision.Table) -> None:
    """Raise InputError with everything in the parameters that a pod could not reach: this machine's files and registry."""
    mounted = Path(table.run.volume.path)
    faults = []
    if not params.data.source.lower().startswith((S3, "doi:")):
        faults.append(f"data.source: pods do not see {params.data.source}; put it into a bucket and give s3://bucket/prefix")
    if params.register_.tracking_uri.startswith(SQLITE) or "://" not in params.register_.tracking_uri:
        faults.append(
            f"register.tracking_uri: pods do not see {params.register_.tracking_uri}; give the MLflow server's http(s):// URL"
        )
    if urlsplit(params.register_.tracking_uri).password:
        faults.append(
            "register.tracking_uri: a password in it would stand in the pipeline; take it out, pods get user and password from "
            f"the secret {table.run.secrets['registry'].name}"
        )
    for name in params.train.architectures:
        origin = params.train.weights_origin(name)
        if origin not in (weights.NONE, weights.IMAGENET) and not origin.startswith(S3) and not _below(origin, mounted):
            faults.append(f"train.weights.{name}: pods do not see {origin}; put it into a bucket and give s3://bucket/key")
    folders = {
        "validate.reference": params.validate_.reference,
        "validate.reference_splits": params.validate_.reference_splits,
        "split.previous": "" if params.split.previous in ("auto", "none") else params.split.previous,
    }
    for name, folder in folders.items():
        if folder and not _below(folder, mounted):
            faults.append(f"{name}: pods do not see {folder}; put it below {mounted}, on the volume {table.run.volume.claim}")
    if faults:
        raise InputError("\n".join(faults))


def arguments(params: Params, table: provision.Table) -> dict[str, Any]:
    """The pipeline's parameters for a run on the cluster.

    Raises
    ------
    InputError
        when the run must go on from splits that only this machine has.
    """
    given = preflight.arguments(params)
    if given["previous"] and not _below(json.loads(given["previous"])["folder"], Path(table.run.volume.path)):
        raise InputError(
            "split.previous: this run goes on from the splits of an earlier version, which are fetched to this machine and not "
            f"seen by pods; submit it where the volume {table.run.volume.claim} is mounted, with DERMAFLOW_HOME="
            f"{table.run.volume.path} (the CronJob in infra/kubernetes is), or with --set split.previous=none start anew, "
            "which the gate never_tested may refuse to promote"
        )
    return {**given, "architectures": provision.trainings(params.train.architectures, table)}


def locked(params: Params, table: provision.Table, path: Path = LOCK) -> ImagesLock:
    """The lock with every image that the pipeline needs; raises InputError with the remedy where one can not be pulled."""
    return require_released(provision.groups(graph.names(params), table), path)


def submit(
    cluster: Cluster, params: Params, lock: ImagesLock, name: str, given: Mapping[str, Any], table: provision.Table
) -> str:
    """Upload the pipeline unless it is there, and start a run of it.

    Parameters
    ----------
    name: of the run, for people; also what `find_run` knows it by.
    given: parameters of the pipeline, by `arguments`.

    Returns
    -------
    The run's id.
    """
    uploaded = upload(cluster, params, lock)
    with _quiet(), _faults("starting the run", cluster.host):
        experiment = cluster.client.create_experiment(params.register_.experiment, namespace=cluster.namespace)
        run = cluster.client.run_pipeline(
            experiment.experiment_id,
            name,
            params=uploaded.parameters(given),
            pipeline_id=uploaded.pipeline_id,
            version_id=uploaded.version_id,
            service_account=table.run.service_account,
        )
    return str(run.run_id)


def upload(cluster: Cluster, params: Params, lock: ImagesLock, always_fresh: tuple[str, ...] = ()) -> Uploaded:
    """The pipeline on the backend, as a version that is named by the digest of its IR: the same one is not uploaded twice.

    Parameters
    ----------
    always_fresh: tasks whose answer is never taken from the cache.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "pipeline.yaml")
        graph.compile_to(path, params, lock, always_fresh)
        digest = file_digest(path)
        version = f"{params.profile}-{digest.removeprefix('sha256:')[:_SHORT]}"
        with _quiet(), _faults("uploading the pipeline", cluster.host):
            pipeline_id = cluster.client.get_pipeline_id(PIPELINE_NAME) or _new_pipeline(cluster, path)
            found = _version(cluster, pipeline_id, version)
            if found is None:
                found = _new_version(cluster, pipeline_id, version, path)
    return Uploaded(pipeline_id, found, version, digest)


def follow(cluster: Cluster, run_id: str, on_task: Callable[[str, str], None], poll: float = _POLL) -> Outcome:
    """Wait for a run's end, and tell each task's new state on the way.

    An API that does not answer for a while is waited for; the run does not depend on who looks at it.
    """
    seen: dict[str, str] = {}
    failed_at: float | None = None
    while True:
        try:
            run = _get_run(cluster, run_id)
            failed_at = None
        except _UnreachableError as error:
            failed_at = failed_at or time.monotonic()
            if time.monotonic() - failed_at > _PATIENCE:
                raise InputError(f"{error}; the run goes on without being looked at: {cluster.link(run_id)}") from error
            time.sleep(poll)
            continue
        for task in kubeflow.tasks_of(run):
            state = str(task.state)
            if seen.get(task.task_id) != state:
                seen[task.task_id] = state
                on_task(str(task.display_name), state)
        if run.state in ENDED:
            return _outcome(run)
        time.sleep(poll)


def cancel(cluster: Cluster, run_id: str) -> str:
    """Ask the backend to end a run; returns the state that it was in. A run that has ended is left as it is."""
    run = _get_run(cluster, run_id)
    if run.state not in ENDED:
        with _quiet(), _faults(f"cancelling {run_id}", cluster.host):
            cluster.client.terminate_run(run_id)
    return str(run.state)


def find_run(cluster: Cluster, name: str) -> str | None:
    """Id of the newest run of this name, or None."""
    with _quiet(), _faults("looking for a run", cluster.host):
        found = cluster.client.list_runs(
            sort_by="created_at desc", namespace=cluster.namespace, filter=equals("display_name", name)
        )
    return str(found.runs[0].run_id) if found.runs else None


def equals(key: str, value: str) -> str:
    """KFP's filter for a field with one value."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


@contextmanager
def asking(what: str, host: str | None) -> Iterator[None]:
    """Around calls of kfp's client: nothing on stdout, and every refusal an InputError that says what to do."""
    with _quiet(), _faults(what, host):
        yield


class _UnreachableError(InputError):
    """The API did not answer, which may pass."""


def _get_run(cluster: Cluster, run_id: str) -> Any:
    with _quiet(), _faults(f"run {run_id}", cluster.host):
        return cluster.client.get_run(run_id)


def _outcome(run: Any) -> Outcome:
    if run.state == "SUCCEEDED":
        return Outcome(run.run_id, run.state)
    step, said = kubeflow.first_failure(run)
    if run.state == "CANCELED":
        said = "it was cancelled"
    return Outcome(run.run_id, run.state, step, said or "KFP tells no reason; the step's log is on the run's page")


def _new_pipeline(cluster: Cluster, path: Path) -> str:
    """Make the pipeline; where another does at the same moment, that one is taken."""
    import kfp_server_api

    try:
        return str(cluster.client.upload_pipeline(str(path), PIPELINE_NAME, namespace=cluster.namespace).pipeline_id)
    except kfp_server_api.ApiException:
        found = cluster.client.get_pipeline_id(PIPELINE_NAME)
        if found is None:
            raise
        return str(found)


def _new_version(cluster: Cluster, pipeline_id: str, name: str, path: Path) -> str:
    import kfp_server_api

    try:
        made = cluster.client.upload_pipeline_version(str(path), name, pipeline_id=pipeline_id)
        return str(made.pipeline_version_id)
    except kfp_server_api.ApiException:
        found = _version(cluster, pipeline_id, name)
        if found is None:
            raise
        return found


def _version(cluster: Cluster, pipeline_id: str, name: str) -> str | None:
    found = cluster.client.list_pipeline_versions(pipeline_id, filter=equals("display_name", name)).pipeline_versions
    return str(found[0].pipeline_version_id) if found else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Around kfp's client, which prints to stdout, where our --json goes, and warns of servers older than 2.0."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def _faults(what: str, host: str | None) -> Iterator[None]:
    import kfp_server_api
    import urllib3

    where = host or "the cluster of this process"
    try:
        yield
    except kfp_server_api.ApiException as error:
        raise _refused(what, where, error) from None  # its text has the answer's headers, cookies among them
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _UnreachableError(f"{what}: {where} does not answer ({type(error).__name__}); {_HOSTS}") from None
    except ValueError as error:  # of kfp's client
        raise GateError(f"{what}: {error}") from error


def _refused(what: str, where: str, error: Any) -> InputError:
    if not error.status or error.status >= 500 or error.status == 429:
        return _UnreachableError(f"{what}: {where} answers {error.status} {error.reason}: {_said(error)}; try again later")
    if error.status in (401, 403):
        return InputError(
            f"{what}: {where} does not let this user in ({error.status}); set KF_PIPELINES_TOKEN_FILE, KF_PIPELINES_TOKEN or "
            f"KF_PIPELINES_COOKIES, or ask for the role that infra/kubernetes gives: {_said(error)}"
        )
    if error.status == 404:
        return InputError(f"{what}: {where} has no such thing: {_said(error)}; check the id, --namespace and the address")
    return InputError(f"{what}: {where} refuses ({error.status}): {_said(error)}")


def _said(error: Any) -> str:
    """The one line of an answer that is for people."""
    try:
        told = json.loads(error.body)
        return str(told.get("message") or told.get("error") or error.reason)[:300]
    except (TypeError, ValueError, AttributeError):
        return str(error.reason)[:300]


def _below(place: str, mounted: Path) -> bool:
    return Path(place).absolute().is_relative_to(mounted)
