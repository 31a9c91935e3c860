"""Running the pipeline's steps in containers of this machine: kfp.local's DockerRunner, which is told each task apart.

Written for kfp 2.17.0 (a test holds the version). Its DockerRunner gives every task the same arguments and mounts the
pipeline's root alone, and takes a container that is gone before it was asked how it ended for one that succeeded. So
`Containers` makes a runner for each task, of what infra/tasks.yaml states, and `TaskInContainer` runs the container and asks
before it removes it.

A task has what it has on a cluster, and nothing more: no capability, a root that it can not write, the memory of its limit,
and a network only where its parameters name something on one. What it reads is mounted where the parameters say that it lies,
so that they, and with them every digest, are those of a local run. The embedded registry is a file and its folder, which are
mounted where a task writes to it: SQLite's locks hold between processes of one kernel, whatever containers they are in.
"""

from __future__ import annotations

import codecs
import copy
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp.local import docker_task_handler
from kfp.local.status import Status

from components.ingest.store import link_file
from components.notify.webhook import URL, webhook_url
from dermaflow import places, weights
from dermaflow.errors import InputError
from dermaflow.ledger import PLACE, account
from dermaflow.params import Params
from dermaflow.registry import SQLITE
from dermaflow.storage import S3
from pipelines import graph, image_builds
from pipelines.images import group_of
from pipelines.provision import TASK_LABEL, Table, Task, amount, groups, read_table

RUN_LABEL = "dermaflow.io/run"
READ_THE_SOURCE = ("ingest", "ingest-originals")
_AWS = ("AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_REGION")  # a shell may have these beside those of infra/tasks.yaml
_TMP = {"/tmp": "size=64m,mode=1777,nosuid,nodev"}  # noqa: S108 - of a container


@dataclass(frozen=True)
class Ending:
    """How a container ended: its exit code, and whether the kernel ended it for its memory."""

    exit_code: int
    out_of_memory: bool


@dataclass(frozen=True)
class Containers:
    """What the containers of a run are given.

    Attributes
    ----------
    images: the id of each group's image.
    has_gpus: whether the daemon can hand out GPUs.
    """

    run_id: str
    params: Params
    table: Table
    images: Mapping[str, str]
    has_gpus: bool = False

    @classmethod
    def of(cls, run_id: str, request: Mapping[str, Any]) -> Containers:
        """Those of a run's request (dermaflow.run_folder.REQUEST)."""
        return cls(run_id, Params.model_validate_json(json.dumps(request["params"])), read_table(), **request["containers"])

    def to_dict(self) -> dict[str, Any]:
        """What a request tells of them."""
        return {"images": dict(self.images), "has_gpus": self.has_gpus}

    def runner(self, task: str) -> Any:
        """The runner of kfp for one task."""
        from kfp import local

        return local.DockerRunner(**self.arguments(task))

    def with_images(self, executors: Mapping[str, Any]) -> dict[str, Any]:
        """The executors with images by their ids: answers of another image are then no answers for kfp's cache."""
        placed = {label: copy.deepcopy(executor) for label, executor in executors.items()}
        for executor in placed.values():
            executor.container.image = self.images[group_of(executor.container.image)]
        return placed

    def arguments(self, task: str) -> dict[str, Any]:
        """The arguments of docker-py's containers.run for one task."""
        from docker.types import DeviceRequest

        row, scratch = self.table.tasks[task], self.table.run.scratch.path
        memory = int(amount(row.memory[1]))
        gpus = [DeviceRequest(count=row.gpus, capabilities=[["gpu"]])] if row.gpus and self.has_gpus else []
        return {
            "network_mode": "host" if self._needs_network(task, row) else "none",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "user": ":".join(map(str, user(self.table))),
            "init": True,  # what a step leaves behind is reaped
            "mem_limit": memory,
            "memswap_limit": memory,  # no swap beside it
            **({"shm_size": int(amount(row.shm))} if row.shm else {}),
            **({"device_requests": gpus} if gpus else {}),
            "tmpfs": _TMP,
            "working_dir": str(Path.cwd()),
            "mounts": self._mounts(task, row),
            "environment": {
                "TMPDIR": scratch,
                "DERMAFLOW_HOME": str(places.home().absolute() if row.volume else Path(scratch, "home")),
                **self._environment(row),
            },
            "labels": {RUN_LABEL: self.run_id, TASK_LABEL: task},
        }

    def memory_fault(self, task: str) -> str:
        """What a person is told of a task that the kernel ended for its memory."""
        return (
            f"it reached its memory limit of {self.table.tasks[task].memory[1]}, and the kernel ended it; raise "
            f"tasks.{task}.memory in infra/tasks.yaml, or give it less: smaller data.image_size, train.batch_size, data.subset"
        )

    def _needs_network(self, task: str, row: Task) -> bool:
        """Whether the parameters give a task anything to speak with."""
        params = self.params
        far = (S3, "doi:", "http://", "https://")
        told = [params.data.source] if task in READ_THE_SOURCE else []
        if "store" in row.secrets and row.group == "train":
            told += [*params.train.weights.values(), params.train.checkpoints]
        if "registry" in row.secrets:
            told.append(params.register_.tracking_uri)
        if "ledger" in row.secrets and not self._is_embedded:
            told.append(os.environ.get(PLACE, ""))
        if "webhook" in row.secrets:
            told.append(webhook_url() or "")
        return any(place.lower().startswith(far) for place in told)

    @property
    def _is_embedded(self) -> bool:
        return self.params.register_.tracking_uri.startswith(SQLITE)

    def _environment(self, row: Task) -> dict[str, str]:
        """What the person's shell says of servers and secrets, as far as the task has them on a cluster."""
        run = self.table.run
        names = {name for secret in row.secrets for name in (run.secrets[secret].env or {}).values()}
        names |= {*run.endpoints.env, *_AWS} if row.secrets else set()
        found = {name: os.environ[name] for name in sorted(names) if os.environ.get(name)}
        if "ledger" in row.secrets:
            found["LOGNAME"] = account()  # in the container the user is a number: the ledger names who started the run
        if "webhook" in row.secrets and (url := webhook_url()):
            found[URL] = url
        return found

    def _mounts(self, task: str, row: Task) -> list[Any]:
        from docker.types import Mount

        found = {self.table.run.scratch.path: Mount(self.table.run.scratch.path, None, type="volume")}
        for folder in self.written(row):
            found[str(folder)] = Mount(str(folder), str(folder.resolve()), type="bind")
        for path in self.read(task, row):
            found.setdefault(str(path), Mount(str(path), str(path.resolve()), type="bind", read_only=True))
        return list(found.values())

    def written(self, row: Task) -> list[Path]:
        """Folders beside its outputs that a task may write: state and caches that outlive it, the registry and its ledger."""
        found = [places.state(), places.cache()] if row.volume else []
        if row.group == "train" and self.params.train.checkpoints and not self.params.train.checkpoints.startswith(S3):
            found.append(Path(self.params.train.checkpoints))
        if "registry" in row.secrets and self._is_embedded:
            found.append(Path(self.params.register_.tracking_uri.removeprefix(SQLITE)).parent)
        ledger = os.environ.get(PLACE, "")
        if "ledger" in row.secrets and not self._is_embedded and ledger and not ledger.startswith(S3):
            found.append(Path(ledger))
        return [folder.absolute() for folder in found]

    def read(self, task: str, row: Task) -> list[Path]:
        """What lies outside the run's folder and a task reads."""
        params = self.params
        told = [params.data.source] if task in READ_THE_SOURCE else []
        told += [params.validate_.reference, params.validate_.reference_splits] if row.group == "validate" else []
        told += [params.split.previous] if row.volume and params.split.previous not in ("auto", "none") else []
        told += [*params.train.weights.values()] if row.group == "train" else []
        return [Path(place).absolute() for place in told if place and "://" not in place and Path(place).exists()]


class TaskInContainer(docker_task_handler.DockerTaskHandler):  # type: ignore[misc]
    """Runs a task's container to its end, and says how it ended, which kfp does not ask."""

    on_end: Callable[[Ending], None]
    running: set[Any] = set()  # noqa: RUF012 - of the process

    def run(self) -> Status:
        """Run the container; its output is printed as it comes."""
        with image_builds.daemon() as client:
            container = client.containers.create(
                self.image,
                self.full_command,
                volumes=self.get_volumes_to_mount(client),
                environment=self.env_vars,
                **self.runner.container_run_args,
            )
            self.running.add(container)
            try:
                container.start()
                decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end within a character
                for piece in container.logs(stream=True, follow=True):
                    print(decoder.decode(piece), end="")
                exit_code = int(container.wait()["StatusCode"])
                container.reload()
                out_of_memory = exit_code != 0 and bool(container.attrs["State"]["OOMKilled"])
            finally:
                self.running.discard(container)
                container.remove(v=True, force=True)
        type(self).on_end(Ending(exit_code, out_of_memory))
        return Status.SUCCESS if exit_code == 0 else Status.FAILURE


def install(on_end: Callable[[Ending], None]) -> None:
    """Let kfp run containers by `TaskInContainer`, and let none outlive this process where it is asked to end."""
    TaskInContainer.on_end = staticmethod(on_end)
    docker_task_handler.DockerTaskHandler = TaskInContainer

    def end(number: int, _: Any) -> None:
        for container in list(TaskInContainer.running):
            container.remove(v=True, force=True)
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def prepare(run_id: str, params: Params) -> Containers:
    """Look whether all that the containers need is here, and make the folders that they write to.

    Raises
    ------
    InputError
        when there is no Docker, an image is not here or of other code, or a source has links that lead out of it.
    """
    table = read_table()
    with image_builds.daemon() as client:
        has_gpus = "nvidia" in client.info().get("Runtimes", {})
    found = Containers(run_id, params, table, images_here(params, table), has_gpus)
    _require_no_links_out(params.data.source)
    for name in params.train.architectures:
        origin = weights.weights_of(params.train, name)
        if origin.origin == weights.IMAGENET and origin.path:
            _keep_weights(origin.path)
    for folder in {folder for name in graph.names(params) for folder in found.written(table.tasks[name])}:
        give(folder, table)
    give(places.RUNS / run_id, table)
    return found


def look_at_images(params: Params) -> str:
    """What a dry run tells of the images; raises InputError as `images_here`."""
    found = images_here(params, read_table())
    return ", ".join(f"{group} {image.removeprefix('sha256:')[:12]}" for group, image in found.items())


def images_here(params: Params, table: Table) -> dict[str, str]:
    """The id of each image that the run needs; raises InputError with a line for each that is not here or of other code."""
    ids, faults = {}, []
    for group in groups(graph.names(params), table):
        try:
            image = image_builds.built(group)
        except InputError as error:
            faults.append(str(error))
            continue
        if wrong := image_builds.difference(group, image.labels):
            faults.append(f"{image.name} {wrong}")
        ids[group] = image.id
    if faults:
        raise InputError("\n".join(faults))
    return ids


def user(table: Table) -> tuple[int, int]:
    """Who steps run as: whoever started the run, so that what they write is theirs; for root the user of the images."""
    return (os.getuid(), os.getgid()) if os.getuid() else (table.run.user, table.run.user)


def give(folder: Path, table: Table) -> None:
    """Make a folder that steps may write; what lies in it already, and is root's, becomes theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    owner, group = user(table)
    for path in (folder, *folder.rglob("*")) if not os.getuid() else ():
        if path.lstat().st_uid != owner:
            os.chown(path, owner, group, follow_symlinks=False)


def _keep_weights(path: Path) -> None:
    """Where steps find weights that Keras publishes: they do not see the home of who starts the run."""
    kept = places.cache() / "weights" / path.name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        link_file(path, kept)


def _require_no_links_out(source: str) -> None:
    root = Path(source)
    if not root.is_dir():
        return
    for path in _links(root):
        if not path.resolve().is_relative_to(root.resolve()):
            raise InputError(
                f"data.source: {path} is a link out of {source}, which a container can not follow; give the folder that the "
                "files lie in, or copies in the place of links"
            )


def _links(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        yield from (path for path in (Path(folder, name) for name in (*folders, *files)) if path.is_symlink())
