"""What each task is given on Kubeflow: infra/tasks.yaml, read strictly and applied to the tasks by kfp and kfp-kubernetes.

kfp 2.17 has no way to choose nodes by an item of a loop but its JSON forms, which take the whole item and nothing within it.
So an item names its architecture and is a Kubernetes NodeAffinity as well: KFP's backend reads of it what an affinity has,
and passes over the name (it decodes with encoding/json, which ignores what it does not know).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dermaflow.architectures import ARCHITECTURES
from dermaflow.checked_yaml import read_settings
from dermaflow.params import Section
from pipelines.code import ROOT
from pipelines.images import GROUPS, ImagesLock

TABLE = ROOT / "infra" / "tasks.yaml"
TASK_LABEL = "dermaflow.io/task"  # of a pod: which task it does
ARCHITECTURE = "architecture"  # of an item of the loops over architectures
_AFFINITY = "requiredDuringSchedulingIgnoredDuringExecution"


def _as_text(cores: Any) -> Any:
    """Cores are written as numbers; Kubernetes has them as texts."""
    return str(cores) if isinstance(cores, int) else cores


Cpu = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^([0-9]+|[0-9]+m)$")]
Bytes = Annotated[str, Field(pattern=r"^[0-9]+(Mi|Gi)$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
MountPath = Annotated[str, Field(pattern=r"^/[a-z0-9/-]+[a-z0-9]$")]
Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
Positive = Annotated[int, Field(ge=1)]


class Ttl(Section):
    success: Positive
    failure: Positive


class Volume(Section):
    claim: Name
    path: MountPath


class Scratch(Section):
    path: MountPath
    size: Bytes


class Label(Section):
    label: str
    value: str


class Endpoints(Section):
    name: Name
    env: tuple[Variable, ...]


class Secret(Section):
    """A Kubernetes secret by its name: its keys as variables, or as files below a path."""

    name: Name
    env: Mapping[str, Variable] | None = None
    path: MountPath | None = None
    optional: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Secret:
        if (self.env is None) == (self.path is None):
            raise ValueError("a secret is given as env or as path: write one of them")
        return self


class Run(Section):
    deadline_hours: Positive
    ttl_hours: Ttl
    namespace: Name
    service_account: Name
    internet: Label
    user: Annotated[int, Field(ge=1000)]
    labels: Mapping[str, str]
    volume: Volume
    scratch: Scratch
    endpoints: Endpoints
    secrets: Mapping[str, Secret]
    pull_secrets: tuple[Name, ...]


class Gpu(Section):
    type: str
    taint: str


class Pool(Label):
    from_zero: bool = False


class Backoff(Section):
    seconds: Positive
    factor: Annotated[float, Field(ge=1)]
    longest_seconds: Positive


class Task(Section):
    """What one task asks for; cpu and memory are request and limit."""

    group: Literal["data", "validate", "train", "judge", "registry"]
    cpu: tuple[Cpu, Cpu]
    memory: tuple[Bytes, Bytes]
    shm: Bytes | None = None
    gpus: Positive | None = None
    minutes: Positive
    retries: Annotated[int, Field(ge=1, le=20)]
    cached: bool
    secrets: tuple[str, ...] = ()
    volume: bool = False
    internet: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Task:
        for what, (request, limit) in (("cpu", self.cpu), ("memory", self.memory)):
            if amount(request) > amount(limit):
                raise ValueError(f"{what}: the request {request} is more than the limit {limit}")
        if self.shm is not None and amount(self.shm) >= amount(self.memory[1]):
            raise ValueError(f"shm: {self.shm} is shared memory, which counts towards the limit {self.memory[1]}")
        return self


class Table(Section):
    """infra/tasks.yaml."""

    run: Run
    gpu: Gpu
    pools: Mapping[Name, Pool]
    architectures: Mapping[str, Annotated[tuple[Name, ...], Field(min_length=1)]]
    backoff: Backoff
    tasks: Mapping[Name, Task]

    @model_validator(mode="after")
    def _joined(self) -> Table:
        if set(self.architectures) != set(ARCHITECTURES):
            raise ValueError(f"architectures: must be exactly {', '.join(ARCHITECTURES)}")
        for name, pools in self.architectures.items():
            if unknown := set(pools) - set(self.pools):
                raise ValueError(f"architectures.{name}: {', '.join(sorted(unknown))} is no pool of this table")
        for name, task in self.tasks.items():
            if unknown := set(task.secrets) - set(self.run.secrets):
                raise ValueError(f"tasks.{name}.secrets: {', '.join(sorted(unknown))} is no secret of this table")
        return self


def read_table(path: Path = TABLE) -> Table:
    """The table; raises InputError naming the field, its value and what is allowed."""
    return read_settings(path, Table, missing="the repository's is infra/tasks.yaml")


def amount(text: str) -> float:
    """A quantity of Kubernetes as a number: cores, or bytes."""
    units = {"m": 1e-3, "Mi": 2**20, "Gi": 2**30}
    number = text.rstrip("mMGi")
    return float(number) * units.get(text[len(number) :], 1)


def trainings(names: Iterable[str], table: Table) -> list[dict[str, Any]]:
    """Items of the loops over architectures: each names one, and is the node affinity for the pools that it may train on."""
    return [
        {ARCHITECTURE: name, _AFFINITY: {"nodeSelectorTerms": [_on(table.pools[pool]) for pool in table.architectures[name]]}}
        for name in names
    ]


@dataclass(frozen=True)
class Provision:
    """Gives tasks what the table states for them.

    Parameters
    ----------
    lock: images by digest; None leaves the names that the components have.
    always_fresh: tasks whose answer is never taken from the cache.
    """

    table: Table
    lock: ImagesLock | None = None
    always_fresh: tuple[str, ...] = ()

    def config(self) -> Any:
        """Of the whole run: its deadline, and how long the cluster remembers it."""
        from kfp import dsl

        run = self.table.run
        return dsl.PipelineConfig(
            active_deadline_seconds=run.deadline_hours * 3600,
            ttl_seconds_after_success=run.ttl_hours.success * 3600,
            ttl_seconds_after_failure=run.ttl_hours.failure * 3600,
        )

    def apply(self, tasks: Mapping[str, Any]) -> None:
        """Provision every task of a pipeline that is being defined."""
        apply_retries(tasks, self.table)
        for name, task in tasks.items():
            if name in self.always_fresh:
                task.set_caching_options(enable_caching=False)
            self._resources(task, self.table.tasks[name])
            self._place(task, name, self.table.tasks[name])
            self._access(task, self.table.tasks[name])

    def _resources(self, task: Any, row: Task) -> None:
        task.set_cpu_request(row.cpu[0]).set_cpu_limit(row.cpu[1])
        task.set_memory_request(row.memory[0]).set_memory_limit(row.memory[1])
        if self.lock and row.group in self.lock.images:
            task.set_container_image(self.lock.images[row.group].pinned)
        if row.gpus:
            task.set_accelerator_type(self.table.gpu.type).set_accelerator_limit(row.gpus)

    def _place(self, task: Any, name: str, row: Task) -> None:
        """Nodes, folders, time and identity of the pod."""
        from kfp import kubernetes

        run = self.table.run
        kubernetes.set_timeout(task, row.minutes * 60)
        kubernetes.set_security_context(task, run_as_user=run.user, run_as_group=run.user, run_as_non_root=True)
        kubernetes.set_image_pull_policy(task, "IfNotPresent")  # a digest is never another image
        for label, value in {
            **run.labels,
            **({run.internet.label: run.internet.value} if row.internet else {}),
            TASK_LABEL: name,
        }.items():
            kubernetes.add_pod_label(task, label, value)
        kubernetes.empty_dir_mount(task, "scratch", run.scratch.path, size_limit=run.scratch.size)
        task.set_env_variable("TMPDIR", run.scratch.path)
        if row.volume:
            kubernetes.mount_pvc(task, run.volume.claim, run.volume.path)
        home = run.volume.path if row.volume else f"{run.scratch.path}/home"
        task.set_env_variable("DERMAFLOW_HOME", home)
        if row.shm:
            kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=row.shm)  # noqa: S108 - of a pod
        if row.gpus:
            kubernetes.add_toleration(task, key=self.table.gpu.taint, operator="Exists", effect="NoSchedule")
            kubernetes.add_node_affinity_json(task, task.inputs[ARCHITECTURE].loop_argument)

    def _access(self, task: Any, row: Task) -> None:
        """Servers that the task speaks with, and by which secrets; their values never pass through here."""
        from kfp import kubernetes

        run = self.table.run
        if run.pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(run.pull_secrets))
        if not row.secrets:
            return
        kubernetes.use_config_map_as_env(task, run.endpoints.name, {name: name for name in run.endpoints.env}, optional=True)
        for name in row.secrets:
            secret = run.secrets[name]
            if secret.env is not None:
                kubernetes.use_secret_as_env(task, secret.name, dict(secret.env), optional=secret.optional)
            else:
                kubernetes.use_secret_as_volume(task, secret.name, str(secret.path), optional=secret.optional)


def apply_retries(tasks: Mapping[str, Any], table: Table) -> None:
    """How often each task is started again and whether its answer is kept: what a local run takes from the table."""
    backoff = table.backoff
    for name, task in tasks.items():
        row = table.tasks[name]
        task.set_caching_options(enable_caching=row.cached)
        task.set_retry(
            num_retries=row.retries,
            backoff_duration=f"{backoff.seconds}s",
            backoff_factor=backoff.factor,
            backoff_max_duration=f"{backoff.longest_seconds}s",
        )


def groups(tasks: Iterable[str], table: Table) -> list[str]:
    """The images that tasks run in, each once."""
    found = {table.tasks[name].group for name in tasks}
    return [group for group in GROUPS if group in found]


def _on(pool: Pool) -> dict[str, Any]:
    return {"matchExpressions": [{"key": pool.label, "operator": "In", "values": [pool.value]}]}
