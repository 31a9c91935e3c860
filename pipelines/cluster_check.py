"""What a run on the cluster needs, looked at before it is submitted: each fault is one line that says what to do about it.

It is looked at with the rights of whoever asks; pods have their own (infra/kubernetes), which only a run shows. Nothing is
changed, but for a tag on the experiment in MLflow: whether one may write there can not be known otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaflow import registry
from dermaflow.errors import InputError
from dermaflow.params import Params
from dermaflow.refusals import CI, CREDENTIALS
from dermaflow.storage import S3, Bucket, split_uri
from pipelines import cluster, graph, image_registry, provision
from pipelines.images import LOCK
from pipelines.preflight import Check

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

_PATIENCE = 15.0  # seconds for which the store is asked again
_APPLY = "kubectl apply -k infra/kubernetes/overlays/prod"


@dataclass(frozen=True)
class Request:
    """What is to be run, and where."""

    params: Params
    table: provision.Table
    host: str | None = None
    namespace: str | None = None
    lock: Path = LOCK

    @property
    def space(self) -> str:
        """The namespace of pods."""
        return self.namespace or self.table.run.namespace


def run_checks(request: Request) -> list[Check]:
    """Look at everything; never raises for a fault of the request or of the cluster."""
    looks: list[tuple[str, Callable[[Request], str]]] = [
        ("parameters", _look_at_parameters),
        ("images", _look_at_images),
        ("KFP API", _look_at_api),
        ("secrets", _look_at_secrets),
        ("volume", _look_at_volume),
        ("GPU pools", _look_at_pools),
        ("object store", _look_at_store),
        ("MLflow", _look_at_registry),
    ]
    found = []
    for name, look in looks:
        try:
            found.append(Check(name, ok=True, detail=look(request)))
        except InputError as error:
            found.append(Check(name, ok=False, detail=str(error)))
    return found


def _look_at_parameters(request: Request) -> str:
    cluster.require_reachable(request.params, request.table)
    return f"pods reach {request.params.data.source} and {request.params.register_.tracking_uri}"


def _look_at_images(request: Request) -> str:
    lock = cluster.locked(request.params, request.table, request.lock)
    wanted = provision.groups(graph.names(request.params), request.table)
    faults = []
    for group in wanted:
        try:
            image_registry.manifest(lock.images[group].reference, lock.images[group].digest)
        except InputError as error:
            faults.append(f"{group}: {error}")
    if faults:
        raise InputError("\n".join(faults))
    return f"{', '.join(wanted)}: pullable by digest, of commit {lock.images[wanted[0]].revision[:12]}"


def _look_at_api(request: Request) -> str:
    found = cluster.connect(request.host, request.namespace)
    return f"{found.host}: {found.about}"


def _look_at_secrets(request: Request) -> str:
    run = request.table.run
    api = _kubernetes()
    faults, seen = [], []
    for secret in run.secrets.values():
        there = _asked(partial(api.read_namespaced_secret, secret.name, request.space), f"secret {secret.name}")
        if there is None and not secret.optional:
            keys = " ".join(f"--from-file={key}=FILE" for key in secret.env or ("url",))
            faults.append(
                f"there is no secret {secret.name}: kubectl -n {request.space} create secret generic {secret.name} {keys}"
            )
        missing = sorted(set(secret.env or ()) - set(there.data or ())) if there is not None else []
        if missing:
            faults.append(f"secret {secret.name} lacks {', '.join(missing)}: add them, by the names in infra/tasks.yaml")
        seen.append(secret.name if there is not None else f"no {secret.name} (optional)")
    account = run.service_account
    if _asked(lambda: api.read_namespaced_service_account(account, request.space), f"service account {account}") is None:
        faults.append(f"there is no service account {account}: {_APPLY}")
    if faults:
        raise InputError("\n".join(faults))
    return f"{', '.join(seen)}; service account {run.service_account}"


def _look_at_volume(request: Request) -> str:
    claim = request.table.run.volume.claim
    api = _kubernetes()
    there = _asked(lambda: api.read_namespaced_persistent_volume_claim(claim, request.space), f"volume claim {claim}")
    if there is None:
        raise InputError(
            f"there is no volume claim {claim} in {request.space}: kubectl apply -k infra/kubernetes/overlays/prod"
        )
    if there.status.phase not in ("Bound", "Pending"):
        raise InputError(f"volume claim {claim} is {there.status.phase}: kubectl -n {request.space} describe pvc {claim}")
    modes = there.spec.access_modes
    if "ReadWriteMany" not in modes and len(_asked(api.list_node, "nodes").items) > 1:  # overlays/dev is of one node
        raise InputError(
            f"volume claim {claim} is {', '.join(modes)}: tasks on several nodes need ReadWriteMany; make it "
            "anew of a storage class that has it (EFS, Filestore, NFS)"
        )
    return f"{claim}: {there.status.phase}, {there.spec.resources.requests['storage']}, {', '.join(modes)}"


def _look_at_pools(request: Request) -> str:
    table = request.table
    api = _kubernetes()
    chosen = {architecture: table.architectures[architecture] for architecture in request.params.train.architectures}
    free = {
        name: _free_gpus(api, f"{table.pools[name].label}={table.pools[name].value}", table.gpu.type)
        for name in dict.fromkeys(pool for pools in chosen.values() for pool in pools)
    }
    needed = max(task.gpus or 0 for task in table.tasks.values())
    faults = []
    for architecture, pools in chosen.items():
        if not any(free[name] >= needed or table.pools[name].from_zero for name in pools):
            label = f"{table.pools[pools[0]].label}={table.pools[pools[0]].value}"
            faults.append(
                f"{architecture}: no node of {', '.join(pools)} has {needed} free {table.gpu.type}; wait, label one {label}, "
                "or give it another pool in infra/tasks.yaml"
            )
    if faults:
        raise InputError("\n".join(faults))
    grows = {name: ", more when asked for" if table.pools[name].from_zero else "" for name in free}
    return "; ".join(f"{name} {count} free{grows[name]}" for name, count in free.items())


def _look_at_store(request: Request) -> str:
    source = request.params.data.source
    if not source.startswith(S3):
        return f"not needed to read {source}"
    name, prefix = split_uri(source)
    bucket = Bucket(name, patience=_PATIENCE, concurrency=1)
    first = next(iter(bucket.objects(prefix)), None)
    if first is None:
        raise InputError(f"data.source: {source} has no objects; correct the prefix, or upload the images")
    return f"{source} is readable at {bucket.endpoint}"


def _look_at_registry(request: Request) -> str:
    from mlflow.exceptions import MlflowException

    uri = request.params.register_.tracking_uri
    if not uri.startswith("http"):
        raise InputError(f"register.tracking_uri: pods do not see {uri}; give the MLflow server's http(s):// URL")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # its own seven take minutes, which a check has not
    client = registry.connect(uri)
    try:
        experiment = registry.experiment_id(client, uri, request.params.register_.experiment)
        client.set_experiment_tag(experiment, registry.TAG + "probe", "dermaflow check")  # takes the right that runs take
    except MlflowException as error:
        raise InputError(
            f"register.tracking_uri: {uri} lets this user read and not write ({error.error_code}); set {CREDENTIALS} to "
            f"those of {CI}, or let the server's administrator look at its rights: dermaflow roles --check"
        ) from error
    return f"{uri}: may read and write {request.params.register_.experiment}"


def _kubernetes() -> CoreV1Api:
    """The API server of the cluster that this process runs in, or of the kubeconfig."""
    from kubernetes import client, config

    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config(os.environ.get("KUBECONFIG"))  # it looks for itself when it is imported alone
        except (config.ConfigException, OSError) as error:
            raise InputError("no kubeconfig says where the cluster is; set KUBECONFIG, or run this in a pod") from error
    return client.CoreV1Api()


def _asked(ask: Callable[[], Any], what: str) -> Any:
    """An answer of the API server; None when there is no such thing."""
    import urllib3
    from kubernetes.client import ApiException

    try:
        return ask()
    except ApiException as error:
        if error.status == 404:
            return None
        if error.status in (401, 403):
            raise InputError(
                f"{what}: this user may not look at it ({error.status}); ask for a role of infra/kubernetes that may"
            ) from None
        raise InputError(f"{what}: the API server answers {error.status} {error.reason}; try again when it is well") from None
    except urllib3.exceptions.HTTPError as error:
        raise InputError(f"{what}: the API server does not answer ({type(error).__name__}); check KUBECONFIG") from None


def _free_gpus(api: CoreV1Api, selector: str, kind: str) -> int:
    """GPUs of a pool that no pod has."""
    nodes = _asked(lambda: api.list_node(label_selector=selector), f"nodes with {selector}").items
    names = {node.metadata.name for node in nodes if not node.spec.unschedulable}
    there = sum(int((node.status.allocatable or {}).get(kind, 0)) for node in nodes if node.metadata.name in names)
    alive = "status.phase!=Succeeded,status.phase!=Failed"
    pods = _asked(lambda: api.list_pod_for_all_namespaces(field_selector=alive), "pods")
    limits = [
        (container.resources.limits or {}).get(kind, 0)
        for pod in pods.items
        if pod.spec.node_name in names
        for container in pod.spec.containers
        if container.resources
    ]
    return there - sum(map(int, limits))
