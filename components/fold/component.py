"""KFP component of the fold step."""

from kfp import dsl

from dermaflow.images import DATA


@dsl.component(base_image=DATA, install_kfp_package=False)
def fold(splits: dsl.Input[dsl.Artifact], fold: int, code: str, held_out: dsl.Output[dsl.Artifact]) -> None:
    """Derive the splits by which the model of one fold is made: the fold is judged, the test set stays unspent."""
    from pathlib import Path

    from components.fold.core import hold_out
    from dermaflow.progress import step

    with step("fold"):
        info = hold_out(Path(splits.path), fold, Path(held_out.path))
        held_out.metadata.update(fold=fold, digest=info["digest"])
