"""The split step from a shell."""

from components.split.core import earlier_at, split
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("split"):
    options, params = step_arguments("split", "Assign lesions to train, validation and test.", "dataset", "splits")
    split(options.dataset, params.split, options.splits, earlier_at(options.splits, params.split))
