"""KFP component of the gate after evaluate, on the predictions of all architectures."""

from kfp import dsl

from dermaflow.images import VALIDATE


@dsl.component(base_image=VALIDATE, install_kfp_package=False)
def validate_predictions(
    dataset: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Artifact],
    evaluations: dsl.Input[list[dsl.Artifact]],
    validate: str,
    code: str,
    report: dsl.Output[dsl.Artifact],
) -> None:
    """Check every model's predictions; a blocking rule that fails stops the run."""
    from pathlib import Path

    from components.validate import core
    from dermaflow.params import ValidateParams
    from dermaflow.progress import step

    with step("validate-predictions"):
        judged = tuple(Path(item.path) for item in evaluations)
        subject = core.Subject(Path(dataset.path), Path(splits.path), evaluations=judged)
        result = core.validate(subject, ValidateParams.from_json(validate), Path(report.path), ("predictions",))
        report.metadata.update(success=result["success"], warnings=len(result["warnings"]))
