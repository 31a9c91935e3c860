"""The train step from a shell."""

from components.train.core import Places, train
from dermaflow.architectures import ARCHITECTURES
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("train"):
    options, params = step_arguments(
        "train",
        "Train one architecture.",
        *("dataset", "splits", "plan", "masks", "model", "history"),
        architecture=tuple(ARCHITECTURES),
    )
    inputs = options.dataset, options.splits, options.plan, options.masks
    targets = options.model, options.history
    train(*inputs, options.architecture, params.train, *targets, places=Places.usual(), register=params.register_)
