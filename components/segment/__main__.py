"""The segment step from a shell."""

from components.segment.core import segment
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("segment"):
    options, params = step_arguments("segment", "Find the lesion in each image.", "dataset", "masks")
    segment(options.dataset, params.segment, options.masks)
