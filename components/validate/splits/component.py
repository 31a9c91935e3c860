"""KFP component of the gate after split."""

from kfp import dsl

from dermaflow.images import VALIDATE


@dsl.component(base_image=VALIDATE, install_kfp_package=False)
def validate_splits(
    dataset: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Artifact],
    validate: str,
    previous: str,
    code: str,
    report: dsl.Output[dsl.Artifact],
) -> None:
    """Check that nothing is on two sides and earlier test sets are kept; a blocking rule that fails stops the run."""
    import json
    from pathlib import Path

    from components.validate import core
    from dermaflow.params import ValidateParams
    from dermaflow.progress import step

    with step("validate-splits"):
        subject = core.Subject(Path(dataset.path), splits=Path(splits.path))
        params = ValidateParams.from_json(validate)
        if previous and not params.reference_splits:
            params = params.model_copy(update={"reference_splits": json.loads(previous)["folder"]})
        result = core.validate(subject, params, Path(report.path), ("splits",))
        report.metadata.update(success=result["success"], warnings=len(result["warnings"]))
