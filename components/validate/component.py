"""KFP component of the validate step: the gate after ingest. The other gates have folders of their own, below."""

from kfp import dsl

from dermaflow.images import VALIDATE


@dsl.component(base_image=VALIDATE, install_kfp_package=False)
def validate(dataset: dsl.Input[dsl.Dataset], validate: str, code: str, report: dsl.Output[dsl.Artifact]) -> None:
    """Check the dataset against its expectation suite; a blocking rule that fails stops the run."""
    from pathlib import Path

    from components.validate import core
    from dermaflow.params import ValidateParams
    from dermaflow.progress import step

    with step("validate"):
        result = core.validate(core.Subject(Path(dataset.path)), ValidateParams.from_json(validate), Path(report.path))
        report.metadata.update(success=result["success"], warnings=len(result["warnings"]))
