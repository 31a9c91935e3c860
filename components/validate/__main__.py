"""The validate step from a shell: the gate after ingest."""

from components.validate.core import Subject, validate
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("validate"):
    options, params = step_arguments("validate", "Check a Dataset against its expectation suite.", "dataset", "report")
    validate(Subject(options.dataset), params.validate_, options.report)
