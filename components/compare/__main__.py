"""The compare step from a shell."""

from components.compare.core import compare
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("compare"):
    options, params = step_arguments(
        "compare",
        "Judge champion and challenger on the same test images.",
        "dataset",
        "splits",
        "masks",
        "evaluation",
        "comparison",
    )
    folders = options.dataset, options.splits, options.masks, options.evaluation
    compare(*folders, params.evaluate, params.register_, options.comparison)
