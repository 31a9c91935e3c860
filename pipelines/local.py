"""Running the pipeline on this machine: kfp.local's SubprocessRunner with what it lacks, or its DockerRunner.

How containers are run is in pipelines.containers; all else is the same.

Written for kfp 2.17.0. It has no hooks, so `_Watch` wraps some of its functions (a test holds the version): the run id
is ours, each task reports its start, end, time and whether the cache answered, a cached artifact counts only when it is
whole, a loop within a loop keeps the outer loop's item, and every task's outputs are found under runs/<run_id>/<step>,
wherever kfp put them.

`run` (in the command's process) starts `python -m pipelines.local FOLDER` (the worker), writes its output to the log
and turns what it reports into events.
"""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaflow import places
from dermaflow.artifacts import ARTIFACT_FILE, read_json, write_json
from dermaflow.errors import InterruptedWorkError
from dermaflow.progress import parse, tell
from dermaflow.run_folder import LOG, REQUEST, TASKS, last_error

if TYPE_CHECKING:
    from pipelines.containers import Containers, Ending

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ITERATION = re.compile(r"-iteration-(\d+)")


@dataclass(frozen=True)
class Failure:
    """Why a run failed: the step, its message, and the exit code for the command."""

    step: str
    message: str
    exit_code: int


def run(run_id: str, request: dict[str, Any], on_event: Callable[[dict[str, Any]], None]) -> Failure | None:
    """Run the pipeline for a request and wait for its end.

    Parameters
    ----------
    request: `params` (JSON of Params) and `arguments` (of the pipeline).
    on_event: called with each event that the worker and its steps report.

    Returns
    -------
    None when the run succeeded.
    """
    folder = places.RUNS / run_id
    write_json(folder / REQUEST, request)
    command = [sys.executable, "-u", "-m", "pipelines.local", str(folder)]
    failures: list[Failure] = []
    work: list[dict[str, Any]] = []  # what each task that was not cached told of its work
    recent: list[str] = []
    with (
        (folder / LOG).open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", bufsize=1
        ) as worker,
    ):
        try:
            for line in worker.stdout or ():
                log.write(_COLOURS.sub("", line))
                log.flush()
                event = parse(line)
                if event is None:
                    recent = [*recent[-400:], line.strip()]
                    continue
                if event["event"] == "task_started":
                    work.append({"task": event["task"]})
                if event["event"] == "worked":
                    work[-1] |= {name: event[name] for name in ("work_seconds", "peak_mib")}
                if event["event"] == "error" and event["exit_code"] != InterruptedWorkError.exit_code:
                    failures.append(Failure(event["step"], event["message"], event["exit_code"]))
                if event["event"] == "task_finished" and event["state"] != "SUCCEEDED":
                    failures.append(Failure(event["task"], _last_words(recent), 1))
                on_event(event)
        except BaseException:
            worker.send_signal(signal.SIGTERM)
            raise
    _add_to_tasks(folder / TASKS, work)
    if worker.returncode == 0:
        return None
    return failures[0] if failures else Failure("pipeline", _last_words(recent), 1)


def _add_to_tasks(path: Path, work: list[dict[str, Any]]) -> None:
    if path.exists():
        told = {entry["task"]: entry for entry in work}
        write_json(path, [{**task, **told.get(task["task"], {})} for task in read_json(path)])


def _last_words(lines: list[str]) -> str:
    return last_error(lines) or "it ended without an error message"


def work(folder: Path) -> int:
    """The worker: run the pipeline that the folder's request asks for; returns the exit code."""
    from kfp import local

    from pipelines.training import training_pipeline

    request = read_json(folder / REQUEST)
    containers = _containers_of(folder.name, request)
    watch = _Watch(folder, request["arguments"]["architectures"], containers)
    watch.install()
    local.init(
        runner=local.DockerRunner() if containers else local.SubprocessRunner(use_venv=False),
        pipeline_root=str(places.RUNS),
        raise_on_error=False,
        enable_caching=True,
        cache_root=str(places.cache() / "steps"),
    )
    training_pipeline(request["arguments"], parallelism=1)()
    return 0 if watch.succeeded else 1


def _containers_of(run_id: str, request: dict[str, Any]) -> Containers | None:
    if "containers" not in request:
        return None
    from pipelines.containers import Containers

    return Containers.of(run_id, request)


class _Watch:
    """Wraps kfp.local's task execution for one run; keeps what it saw in runs/<run_id>/tasks.json."""

    def __init__(self, folder: Path, architectures: list[str], containers: Containers | None = None) -> None:
        self.folder = folder
        self.architectures = architectures
        self.containers = containers  # None: processes
        self.tasks: list[dict[str, Any]] = []
        self.exit_code = 0  # of the last process that a task ran in
        self.out_of_memory = False  # whether its container's limit ended it

    @property
    def succeeded(self) -> bool:
        """Whether every task that ran did so, down to the last one, which tells the outcome."""
        return bool(self.tasks) and all(task["state"] == "SUCCEEDED" for task in self.tasks)

    def install(self) -> None:
        """Put the wrappers in place."""
        from kfp.local import cache, executor_input_utils, subprocess_task_handler
        from kfp.local.orchestrator import task_executor, task_spec_utils

        class WholeArtifactsCache(cache.LocalCache):  # type: ignore[misc]
            def get(self, key: str) -> Any:
                outputs = super().get(key)
                whole = outputs is not None and all(Path(item.uri, ARTIFACT_FILE).exists() for item in outputs.values())
                return outputs if whole else None

        cache.LocalCache = WholeArtifactsCache
        executor_input_utils.get_local_pipeline_resource_name = lambda _: self.folder.name
        iteration = task_spec_utils.create_parameter_loop_iteration_task_spec
        task_spec_utils.create_parameter_loop_iteration_task_spec = lambda *given: _with_outer_items(
            given[0], iteration(*given)
        )
        original = task_executor.execute_single_task
        task_executor.execute_single_task = lambda **given: self._execute(original, given)
        start = subprocess_task_handler.run_local_subprocess

        def started(**given: Any) -> int:
            self.exit_code = start(**given)
            return self.exit_code

        subprocess_task_handler.run_local_subprocess = started
        if self.containers:
            from pipelines import containers

            containers.install(self._container_ended)

    def _container_ended(self, ending: Ending) -> None:
        self.exit_code, self.out_of_memory = ending.exit_code, ending.out_of_memory

    def _execute(self, original: Callable[..., Any], given: dict[str, Any]) -> Any:
        label = self._label(given["task_name"], given["pipeline_resource_name"])
        tell("task_started", task=label)
        started = time.monotonic()
        outputs, status = self._tried(original, given, label)
        uris = {name: item.uri for name, item in outputs.items()}
        task = {
            "task": label,
            "state": "SUCCEEDED" if status.name == "SUCCESS" else "FAILED",
            "seconds": round(time.monotonic() - started, 2),
            "cached": any(self.folder.name not in Path(uri).parts for uri in uris.values()),
        }
        self._link(label, uris)
        self.tasks.append(task)
        write_json(self.folder / TASKS, self.tasks)
        tell("task_finished", **task)
        return outputs, status

    def _tried(self, original: Callable[..., Any], given: dict[str, Any], label: str) -> Any:
        """Execute a task, again and again while its process is ended from outside, as often as its retry policy says.

        kfp would also start a step again that found its input to be wrong, or its memory too small: in vain.
        """
        task, spec = given["task_name"], copy.deepcopy(given["task_spec"])
        if self.containers:
            executors = self.containers.with_images(given["executors"])
            given = {**given, "runner": self.containers.runner(task), "executors": executors}
        retries, spec.retry_policy.max_retry_count = spec.retry_policy.max_retry_count, 0
        for attempt in range(retries + 1):
            outputs, status = original(**{**given, "task_spec": spec})
            in_vain = self.out_of_memory or not _ended_from_outside(self.exit_code)
            if status.name == "SUCCESS" or in_vain or attempt == retries:
                break
            tell("retry", task=label, exit_code=self.exit_code, attempt=attempt + 1, of=retries)
        if status.name != "SUCCESS" and self.containers and self.out_of_memory:
            tell("error", step=label, message=self.containers.memory_fault(task), exit_code=1)
        elif status.name != "SUCCESS" and (name := _signal_of(self.exit_code)):
            hint = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
            tell("error", step=label, message=f"its process was ended by {name}{hint}", exit_code=1)
        return outputs, status

    def _label(self, task: str, resource: str) -> str:
        """What a task of loops is called: train-resnet50, or train-resnet50-fold-2 of the third fold."""
        match [int(number) for number in _ITERATION.findall(resource)]:
            case [architecture]:
                return f"{task}-{self.architectures[architecture]}"
            case [architecture, fold]:
                return f"{task.removesuffix('-fold')}-{self.architectures[architecture]}-fold-{fold}"
            case _:
                return task

    def _link(self, label: str, uris: dict[str, str]) -> None:
        """Make runs/<run_id>/<label> lead to the outputs: kfp puts those of loops and of cached tasks elsewhere."""
        place = self.folder.absolute() / label
        for uri in uris.values():
            outputs = Path(uri).parent
            if outputs != place and not place.exists():
                place.symlink_to(os.path.relpath(outputs, place.parent))


def _ended_from_outside(exit_code: int) -> bool:
    """Whether a process was killed by a signal, or ended because it was asked to and kept its state."""
    return _signal_of(exit_code) is not None or exit_code == InterruptedWorkError.exit_code


def _signal_of(exit_code: int) -> str | None:
    """Name of the signal that killed a process, by its exit code: its number less than 0; of a shell's child, more than 128."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    return signal.Signals(number).name if number in set(signal.Signals) else None


def _with_outer_items(loop: Any, iteration: Any) -> Any:
    """One turn of a loop, with what it reads from the loop around it: kfp 2.17.0 puts its own item in the place of both."""
    for name, read in loop.inputs.parameters.items():
        if read.component_input_parameter.endswith("-loop-item"):
            iteration.inputs.parameters[name].CopyFrom(read)
    return iteration


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1])))
