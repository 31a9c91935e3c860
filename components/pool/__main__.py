"""The pool step from a shell: `--folds` holds `<fold>/evaluation` for each fold of one architecture."""

from components.pool.core import pool
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("pool"):
    options, params = step_arguments(
        "pool", "Judge the predictions of all folds' models together.", "dataset", "splits", "folds", "evaluation"
    )
    evaluations = sorted(options.folds.glob("*/evaluation"))
    pool(options.dataset, options.splits, evaluations, params.evaluate, options.evaluation)
