"""KFP component of the train step."""

from kfp import dsl

from dermaflow.images import TRAIN


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def train(
    dataset: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Artifact],
    plan: dsl.Input[dsl.Artifact],
    masks: dsl.Input[dsl.Artifact],
    architecture: str,
    train: str,
    register: str,
    weights_digest: str,
    code: str,
    model: dsl.Output[dsl.Model],
    history: dsl.Output[dsl.Artifact],
) -> None:
    """Train one architecture; an interrupted training goes on from its last checkpoint."""
    from pathlib import Path

    from components.train.core import Places
    from components.train.core import train as work
    from dermaflow.params import RegisterParams, TrainParams
    from dermaflow.progress import step

    with step("train"):
        folders = [Path(artifact.path) for artifact in (dataset, splits, plan, masks)]
        targets = Path(model.path), Path(history.path)
        params, follow = TrainParams.from_json(train), RegisterParams.from_json(register)
        info = work(*folders, architecture, params, *targets, places=Places.usual(), register=follow)
        model.metadata.update(architecture=architecture, parameters=info["parameters"])
