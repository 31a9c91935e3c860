"""KFP component of the compare step."""

from kfp import dsl

from dermaflow.images import JUDGE


@dsl.component(base_image=JUDGE, install_kfp_package=False)
def compare(
    dataset: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Artifact],
    masks: dsl.Input[dsl.Artifact],
    evaluation: dsl.Input[dsl.Artifact],
    evaluate: str,
    register: str,
    comparison: dsl.Output[dsl.Artifact],
) -> None:
    """Judge champion and challenger on the same test images, those left out that either was trained on."""
    from pathlib import Path

    from components.compare.core import compare as work
    from dermaflow.params import EvaluateParams, RegisterParams
    from dermaflow.progress import step

    with step("compare"):
        folders = (Path(item.path) for item in (dataset, splits, masks, evaluation))
        settings = EvaluateParams.from_json(evaluate), RegisterParams.from_json(register)
        info = work(*folders, *settings, Path(comparison.path))
        comparison.metadata.update(champion=str(info["champion"]), images=info["images"])
