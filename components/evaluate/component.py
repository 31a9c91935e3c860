"""KFP component of the evaluate step."""

from kfp import dsl

from dermaflow.images import JUDGE


@dsl.component(base_image=JUDGE, install_kfp_package=False)
def evaluate(
    dataset: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Artifact],
    masks: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    evaluate: str,
    code: str,
    evaluation: dsl.Output[dsl.Artifact],
) -> None:
    """Judge a model on validation and test images, kept apart, with 95 % intervals over lesions."""
    from pathlib import Path

    from components.evaluate.core import evaluate as work
    from dermaflow.params import EvaluateParams
    from dermaflow.progress import step

    with step("evaluate"):
        folders = [Path(artifact.path) for artifact in (dataset, splits, masks, model)]
        work(*folders, EvaluateParams.from_json(evaluate), Path(evaluation.path))
