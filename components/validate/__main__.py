"""The validate step from a shell."""

from components.validate.core import validate
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("validate"):
    options, params = step_arguments("validate", "Check a Dataset against its expectation suite.", "dataset", "report")
    validate(options.dataset, params.validate_, options.report)
