"""KFP component of the gate before training, on masks and plan."""

from kfp import dsl

from dermaflow.images import VALIDATE


@dsl.component(base_image=VALIDATE, install_kfp_package=False)
def validate_masks_and_plan(
    dataset: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Artifact],
    masks: dsl.Input[dsl.Artifact],
    plan: dsl.Input[dsl.Artifact],
    validate: str,
    code: str,
    report: dsl.Output[dsl.Artifact],
) -> None:
    """Check the masks, and that only train images are drawn; a blocking rule that fails stops the run."""
    from pathlib import Path

    from components.validate import core
    from dermaflow.params import ValidateParams
    from dermaflow.progress import step

    with step("validate-masks-and-plan"):
        subject = core.Subject(Path(dataset.path), Path(splits.path), Path(plan.path), Path(masks.path))
        result = core.validate(subject, ValidateParams.from_json(validate), Path(report.path), ("masks", "plan"))
        report.metadata.update(success=result["success"], warnings=len(result["warnings"]))
