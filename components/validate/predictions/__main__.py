"""The gate after evaluate, from a shell: `--models` holds `<architecture>/evaluation` for each.

The architectures are those of params.yaml, which dvc.yaml trains one by one whatever the profile.
"""

from components.validate.core import Subject, validate
from dermaflow.command import step_arguments
from dermaflow.params import load_params
from dermaflow.progress import step

with step("validate-predictions"):
    options, params = step_arguments(
        "validate.predictions",
        "Check all predictions against their expectation suite.",
        *("dataset", "splits", "models", "report"),
    )
    evaluations = tuple(options.models / name / "evaluation" for name in load_params().train.architectures)
    subject = Subject(options.dataset, options.splits, evaluations=evaluations)
    validate(subject, params.validate_, options.report, ("predictions",))
