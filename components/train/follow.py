"""Training that can be followed while it runs: a run of MLflow with a row of metrics an epoch, and the machine's figures.

It is told in a thread of its own: a tracking server that is slow does not hold training up, and one that is away does not
end it.
"""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from components.train.checkpoints import Checkpoints
from dermaflow.errors import InterruptedWorkError
from dermaflow.params import RegisterParams, TrainParams, flat
from dermaflow.progress import tell
from dermaflow.registry import announce, connect, experiment_id

EXPERIMENT = "{}-training"  # of the trainings, beside the experiment of the registered models
SAMPLED_EVERY = 10  # seconds between two looks at processor, memory, disk and GPU
_RUN = "run"  # the checkpoint that holds the run's id
_PATIENCE = 60.0  # seconds for what is still to be told at the end


class Follower:
    """A run of MLflow for one training, or, where `register` is None, nothing. A training that goes on does so in its run."""

    def __init__(
        self,
        register: RegisterParams | None,
        architecture: str,
        fold: int | None,
        params: TrainParams,
        key: str,
        checkpoints: Checkpoints,
    ) -> None:
        self._register, self._checkpoints = register, checkpoints
        self._params = {"architecture": architecture, **flat(params.model_dump(mode="json", exclude={"architectures"}))}
        self._tags = {
            "mlflow.runName": f"train {architecture}" + ("" if fold is None else f" fold {fold}"),
            "dermaflow.training_key": key,
        }
        self._to_do: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._begun = threading.Event()
        self._run_id: str | None = None
        self._thread = threading.Thread(target=self._work, name="follow", daemon=True)

    def __enter__(self) -> Self:
        if self._register is not None:
            announce(self._register.tracking_uri)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._register is not None:
            self._to_do.put(("end", "FINISHED" if kind is None else "KILLED" if kind is InterruptedWorkError else "FAILED"))
            self._thread.join(_PATIENCE)

    @property
    def run_id(self) -> str | None:
        """The run's id; None where there is no run, or MLflow does not answer."""
        if self._register is not None:
            self._begun.wait(_PATIENCE)
        return self._run_id

    def epoch(self, epoch: int, row: dict[str, Any]) -> None:
        """Tell an epoch's row of the history, and its number over all stages."""
        numbers = {name: float(value) for name, value in row.items() if name not in ("stage", "epoch")}
        self._to_do.put(("epoch", (epoch, int(time.time() * 1000), numbers)))

    def finish(self, history: Path) -> None:
        """Tell what came of it: the folder of the history, with the learning curves."""
        self._to_do.put(("history", str(history)))

    def _work(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - whatever ails the tracking server must not end the training
            first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            tell("warning", message=f"training can not be followed in MLflow: {first}; training goes on")
        finally:
            self._begun.set()

    def _follow(self) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        assert self._register is not None, "without a registry the thread is not started"
        uri = self._register.tracking_uri
        client = connect(uri)
        kept = self._checkpoints.read(_RUN)
        if kept is None:
            place = experiment_id(client, uri, EXPERIMENT.format(self._register.experiment))
            self._run_id = client.create_run(place, tags=self._tags).info.run_id
            client.log_batch(self._run_id, params=[Param(name, str(value)) for name, value in self._params.items()])
            self._checkpoints.write(_RUN, {}, {"run_id": self._run_id})
        else:
            self._run_id = kept.told["run_id"]
            client.update_run(self._run_id, status="RUNNING")
        self._begun.set()
        monitor = SystemMetricsMonitor(
            self._run_id, sampling_interval=SAMPLED_EVERY, resume_logging=kept is not None, tracking_uri=uri
        )
        monitor.start()
        try:
            while True:
                what, value = self._to_do.get()
                if what == "epoch":
                    epoch, at, numbers = value
                    client.log_batch(self._run_id, [Metric(name, number, at, epoch) for name, number in numbers.items()])
                elif what == "history":
                    client.log_artifacts(self._run_id, value, "history")
                else:
                    break
        finally:
            monitor.finish()
        client.set_terminated(self._run_id, value)
        if value == "FINISHED":
            self._checkpoints.remove(_RUN)
