"""The pipeline as a graph: compiled to IR YAML, and as a list of tasks for people."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import yaml

from components import BEFORE, OUT_OF_FOLD, TASKS
from dermaflow.errors import InputError
from dermaflow.params import Params
from pipelines.images import ImagesLock
from pipelines.preflight import default_arguments

_REGISTER = TASKS.index("register")
_HEADER = re.compile(
    r"^(#    architectures: list) \[Default: .*\]$", re.MULTILINE
)  # kfp writes nested values in no fixed order there
_ORDER = (*BEFORE, *TASKS[:_REGISTER], *OUT_OF_FOLD, *TASKS[_REGISTER:])


def compile_to(output: Path, params: Params, lock: ImagesLock | None = None, always_fresh: tuple[str, ...] = ()) -> None:
    """Compile the pipeline to IR YAML; the file appears whole or not at all.

    Parameters
    ----------
    lock: images by digest; None leaves their names.
    always_fresh: tasks whose answer is never taken from the cache, whatever the table says.

    Raises
    ------
    InputError
        when the place can not be written or is not named .yaml.
    """
    from kfp import compiler

    from pipelines.provision import Provision, read_table
    from pipelines.training import training_pipeline

    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"--output {output}: KFP reads IR from files named .yaml")
    pipeline = training_pipeline(default_arguments(params), provision=Provision(read_table(), lock, always_fresh))
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, "pipeline.yaml")
        compiler.Compiler().compile(pipeline, str(written))
        text = _HEADER.sub(
            rf"\1 [Default: {', '.join(params.train.architectures)}, and where each may train]", written.read_text()
        )
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        partial.replace(output)
    except OSError as error:
        if partial.exists():
            partial.unlink()
        raise InputError(f"--output {output}: can not be written: {error.strerror}") from error


def names(params: Params) -> list[str]:
    """The tasks that the pipeline has with these parameters, in their order; nothing is compiled for it."""
    there = {*TASKS, *(BEFORE if params.augment.before_split else ()), *(OUT_OF_FOLD if params.split.folds else ())}
    return [name for name in _ORDER if name in there]


def tasks(params: Params) -> list[dict[str, Any]]:
    """The compiled pipeline's tasks in the order in which they run: name, after (tasks), image, gpu (count), cached."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "pipeline.yaml")
        compile_to(path, params)
        spec = next(yaml.safe_load_all(path.read_text()))
    found = _flatten(spec, spec["root"]["dag"], inherited=[])
    return [_describe(spec, name, *found[name]) for name in sorted(found, key=_ORDER.index)]


def _flatten(spec: dict[str, Any], dag: dict[str, Any], inherited: list[str]) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Each step's task with the steps that it waits for, through the loops and handlers that KFP wraps them in."""
    inner = {name: spec["components"][task["componentRef"]["name"]].get("dag") for name, task in dag["tasks"].items()}

    def steps(name: str) -> list[str]:
        return list(inner[name]["tasks"]) if inner[name] else [name]

    found: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name, task in dag["tasks"].items():
        after = sorted({step for other in task.get("dependentTasks", ()) for step in steps(other)} | set(inherited))
        found |= _flatten(spec, inner[name], after) if inner[name] else {name: (task, after)}
    return found


def _describe(spec: dict[str, Any], name: str, task: dict[str, Any], after: list[str]) -> dict[str, Any]:
    label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
    container = spec["deploymentSpec"]["executors"][label]["container"]
    return {
        "name": name,
        "after": sorted((step for step in after if step in _ORDER), key=_ORDER.index),
        "image": container["image"],
        "gpu": int(container.get("resources", {}).get("accelerator", {}).get("resourceCount", 0)),
        "cached": bool(task.get("cachingOptions", {}).get("enableCache", False)),
    }
