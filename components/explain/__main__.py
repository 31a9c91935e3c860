"""The explain step from a shell."""

from components.explain.core import explain
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("explain"):
    options, params = step_arguments(
        "explain", "Attribute logits to pixels.", "dataset", "splits", "masks", "model", "evaluation", "explanation"
    )
    inputs = options.dataset, options.splits, options.masks, options.model, options.evaluation
    explain(*inputs, params.explain, options.explanation)
