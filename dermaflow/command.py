"""The command line of a single step: `python -m components.<step>`, used by dvc.yaml and inside containers."""

from __future__ import annotations

import argparse
from pathlib import Path

from dermaflow.errors import InputError
from dermaflow.params import Params, load_params

WITH_FOLDS = ("ingest", "validate", "split", "validate.splits", "fold", "pool")  # data are prepared with folds at a desk too


def step_arguments(step: str, description: str, *folders: str, **choices: tuple[str, ...]) -> tuple[argparse.Namespace, Params]:
    """Parse a step's command line.

    Parameters
    ----------
    folders: names of the artifacts that the step reads and writes; each becomes a required option with a folder.
    choices: further required options with the values they may take (none given: any text).

    Returns
    -------
    The options (folders as Path), and the parameters that --profile and --set ask for.
    """
    parser = argparse.ArgumentParser(prog=f"python -m components.{step}", description=description)
    for name in folders:
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=f"folder of the {name} artifact")
    for name, allowed in choices.items():
        parser.add_argument(f"--{name}", required=True, choices=allowed or None)
    parser.add_argument("--profile", default="default", help="params.yaml with params/PROFILE.yaml laid over it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one parameter")
    options = parser.parse_args()
    params = load_params(options.profile, options.set)
    if params.augment.before_split and step != "balance":
        raise InputError(
            "augment.before_split needs three tasks before the first step, which only the pipeline has: use dermaflow run "
            f"--profile {params.profile}, or augment.before_split=false with balance none and no targets"
        )
    if params.split.folds and step not in WITH_FOLDS:
        raise InputError(
            f"split.folds is {params.split.folds}, but only the pipeline makes a model of each fold: use dermaflow run, or "
            "split.folds=0 here"
        )
    return options, params
