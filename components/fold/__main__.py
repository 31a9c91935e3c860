"""The fold step from a shell."""

from components.fold.core import hold_out
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("fold"):
    folds = tuple(str(fold) for fold in range(20))  # no split has more
    options, _ = step_arguments("fold", "Derive the splits of one fold.", "splits", "held_out", fold=folds)
    hold_out(options.splits, int(options.fold), options.held_out)
