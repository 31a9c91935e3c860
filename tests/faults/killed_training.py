"""Runs of the pipeline whose training is killed at a random moment; the pipeline's own retry starts it again."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from dermaflow.artifacts import read_json
from tests.workspace import DERMAFLOW, Workspace, sets

_TRAIN = ("--function_to_execute", "train")  # how kfp starts the step,
_STEP = "kfp.dsl.executor_main"  # and the process that it is: the shell around it lives on when it is killed for memory


@dataclass
class Killer:
    """Watches a run's processes; kills each architecture's training once, so many seconds after its process began.

    Attributes
    ----------
    after: by architecture; None only takes the time.
    seconds: that each training's first process lived, by architecture.
    """

    run: psutil.Process
    after: dict[str, float | None]
    seconds: dict[str, float] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)

    def watch(self) -> None:
        """Until the run ends."""
        seen: set[int] = set()
        while self.run.is_running() and self.run.status() != psutil.STATUS_ZOMBIE:
            for process in _trainings(self.run):
                if process.pid not in seen:
                    seen.add(process.pid)
                    threading.Thread(target=self._meet, args=(process,), daemon=True).start()
            time.sleep(0.05)

    def _meet(self, process: psutil.Process) -> None:
        try:
            text = " ".join(process.cmdline())
            name = next(name for name in self.after if f'"architecture": "{name}"' in text)
            moment = self.after[name]
            if name in self.seconds or name in self.killed:
                return
            if moment is not None:
                time.sleep(max(0.0, moment - (time.time() - process.create_time())))
                process.kill()
                self.killed.add(name)
                return
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                self.seconds[name] = time.time() - process.create_time()
                time.sleep(0.05)
        except (psutil.NoSuchProcess, StopIteration):
            return


def _trainings(run: psutil.Process) -> list[psutil.Process]:
    found = []
    try:
        for child in run.children(recursive=True):
            line = child.cmdline()
            if _STEP in line and any(pair == _TRAIN for pair in itertools.pairwise(line)):
                found.append(child)
    except psutil.NoSuchProcess:
        return found
    return found


def run(workspace: Workspace, after: dict[str, float | None], *settings: str) -> tuple[dict[str, str], Killer, list[Any]]:
    """Run the pipeline, and kill trainings.

    Returns
    -------
    The digest of each architecture's weights, the killer, and the run's tasks.
    """
    command = [str(DERMAFLOW), "run", "--profile", "phantom", *sets(*settings), "--json"]
    with subprocess.Popen(command, cwd=workspace.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        killer = Killer(psutil.Process(process.pid), after)
        watcher = threading.Thread(target=killer.watch, daemon=True)
        watcher.start()
        out, err = process.communicate()
        watcher.join()
    assert process.returncode == 0, err[-3000:]
    folder = workspace.path / "runs" / json.loads(out)["run_id"]
    digests = {name: read_json(folder / f"train-{name}/model/model.json")["weights_digest"] for name in after}
    return digests, killer, read_json(folder / "tasks.json")


def digests_after_kills(
    workspace: Workspace, kills: int, *settings: str, architectures: tuple[str, ...], seed: int = 0
) -> tuple[dict[str, str], list[dict[str, str]], int]:
    """Train undisturbed, then `kills` times with every training killed once at a random moment.

    Each run has another `train.checkpoint_seconds`, which changes what is trained in nothing but makes the step's answer in
    the cache none.

    Returns
    -------
    The undisturbed digests, those of each disturbed run, and how many kills met a process.
    """
    undisturbed, calm, _ = run(workspace, dict.fromkeys(architectures), *settings, "train.checkpoint_seconds=1000")
    moments, found, met = np.random.default_rng(seed), [], 0
    for number in range(kills):
        after: dict[str, float | None] = {name: moments.uniform(0, calm.seconds[name]) for name in architectures}
        digests, killer, _ = run(workspace, after, *settings, f"train.checkpoint_seconds={0.001 * number:.3f}")
        found.append(digests)
        met += len(killer.killed)
    return undisturbed, found, met
