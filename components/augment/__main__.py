"""The augment step from a shell."""

from components.augment.core import augment
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("augment"):
    options, params = step_arguments("augment", "Plan what the trainer may draw.", "dataset", "splits", "plan")
    augment(options.dataset, options.splits, params.augment, params.mixup, options.plan)
