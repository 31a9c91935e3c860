"""The gate after split, from a shell."""

from components.validate.core import Subject, validate
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("validate-splits"):
    options, params = step_arguments(
        "validate.splits", "Check Splits against their expectation suite.", "dataset", "splits", "report"
    )
    validate(Subject(options.dataset, options.splits), params.validate_, options.report, ("splits",))
