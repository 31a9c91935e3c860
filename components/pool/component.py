"""KFP component of the pool step."""

from kfp import dsl

from dermaflow.images import JUDGE


@dsl.component(base_image=JUDGE, install_kfp_package=False)
def pool(
    dataset: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Artifact],
    evaluations: dsl.Input[list[dsl.Artifact]],
    evaluate: str,
    code: str,
    evaluation: dsl.Output[dsl.Artifact],
) -> None:
    """Judge the predictions of all folds' models together: each image by the model that it was held out from."""
    from pathlib import Path

    from components.pool.core import pool as work
    from dermaflow.params import EvaluateParams
    from dermaflow.progress import step

    with step("pool"):
        folds = [Path(item.path) for item in evaluations]
        work(Path(dataset.path), Path(splits.path), folds, EvaluateParams.from_json(evaluate), Path(evaluation.path))
