"""KFP component of the balance step."""

from kfp import dsl

from dermaflow.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def balance(dataset: dsl.Input[dsl.Dataset], augment: str, code: str, source: dsl.Output[dsl.Artifact]) -> None:
    """Bring each class to its total before the split, as the study did; what comes of it is never promoted."""
    from pathlib import Path

    from components.balance.core import balance as work
    from dermaflow.params import AugmentParams
    from dermaflow.progress import step

    with step("balance"):
        info = work(Path(dataset.path), AugmentParams.from_json(augment), Path(source.path))
        source.metadata.update(mark=info.mark)
