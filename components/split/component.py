"""KFP component of the split step."""

from kfp import dsl

from dermaflow.images import DATA


@dsl.component(base_image=DATA, install_kfp_package=False)
def split(dataset: dsl.Input[dsl.Dataset], split: str, previous: str, code: str, splits: dsl.Output[dsl.Artifact]) -> None:
    """Assign lesions to train, validation and test, stratified by class and group size; keep the sides of earlier splits."""
    import json
    from pathlib import Path

    from components.split.core import split as work
    from dermaflow.params import SplitParams
    from dermaflow.progress import step

    with step("split"):
        earlier = Path(json.loads(previous)["folder"]) if previous else None
        info = work(Path(dataset.path), SplitParams.from_json(split), Path(splits.path), earlier)
        splits.metadata.update(digest=info["digest"], promotable=info["promotable"])
