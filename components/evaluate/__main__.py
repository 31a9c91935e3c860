"""The evaluate step from a shell."""

from components.evaluate.core import evaluate
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("evaluate"):
    options, params = step_arguments(
        "evaluate", "Judge a model on validation and test.", "dataset", "splits", "masks", "model", "evaluation"
    )
    evaluate(options.dataset, options.splits, options.masks, options.model, params.evaluate, options.evaluation)
