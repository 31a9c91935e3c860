"""The pipeline as a graph: compiled to IR YAML, and as a list of tasks for people."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from dermaflow.errors import InputError
from dermaflow.params import Params
from pipelines.preflight import default_arguments


def compile_to(output: Path, params: Params) -> None:
    """Compile the pipeline to IR YAML; the file appears whole or not at all.

    Raises
    ------
    InputError
        when the place can not be written or is not named .yaml.
    """
    from kfp import compiler

    from pipelines.training import training_pipeline

    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"--output {output}: KFP reads IR from files named .yaml")
    pipeline = training_pipeline(default_arguments(params))
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, "pipeline.yaml")
        compiler.Compiler().compile(pipeline, str(written))
        text = written.read_text()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f".{output.name}.partial")
        partial.write_text(text)
        partial.replace(output)
    except OSError as error:
        raise InputError(f"--output {output}: can not be written: {error.strerror}") from error


def tasks(params: Params) -> list[dict[str, Any]]:
    """The compiled pipeline's tasks, in the order of the definition: name, after, image, gpu (count), cached."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "pipeline.yaml")
        compile_to(path, params)
        spec = next(yaml.safe_load_all(path.read_text()))
    executors = spec["deploymentSpec"]["executors"]
    found = []
    for dag in _dags(spec):
        for name, task in dag["tasks"].items():
            component = spec["components"][task["componentRef"]["name"]]
            if "executorLabel" in component:
                container = executors[component["executorLabel"]]["container"]
                found.append(
                    {
                        "name": name,
                        "after": sorted(task.get("dependentTasks", ())),
                        "image": container["image"],
                        "gpu": int(container.get("resources", {}).get("accelerator", {}).get("resourceCount", 0)),
                        "cached": bool(task.get("cachingOptions", {}).get("enableCache", False)),
                    }
                )
    return found


def _dags(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["root"]["dag"], *(component["dag"] for component in spec["components"].values() if "dag" in component)]
