"""The gate before training, on masks and plan, from a shell."""

from components.validate.core import Subject, validate
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("validate-masks-and-plan"):
    options, params = step_arguments(
        "validate.masks_and_plan",
        "Check Masks and a Plan against their expectation suites.",
        *("dataset", "splits", "plan", "masks", "report"),
    )
    subject = Subject(options.dataset, options.splits, options.plan, options.masks)
    validate(subject, params.validate_, options.report, ("masks", "plan"))
