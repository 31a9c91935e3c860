"""KFP component of the augment step."""

from kfp import dsl

from dermaflow.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def augment(
    dataset: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Artifact],
    augment: str,
    mixup: str,
    code: str,
    plan: dsl.Output[dsl.Artifact],
) -> None:
    """Plan what the trainer may draw: rows of the train split only."""
    from pathlib import Path

    from components.augment.core import augment as work
    from dermaflow.params import AugmentParams, MixupParams
    from dermaflow.progress import step

    with step("augment"):
        work(
            Path(dataset.path),
            Path(splits.path),
            AugmentParams.from_json(augment),
            MixupParams.from_json(mixup),
            Path(plan.path),
        )
