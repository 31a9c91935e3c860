"""KFP component of the segment step."""

from kfp import dsl

from dermaflow.images import DATA


@dsl.component(base_image=DATA, install_kfp_package=False)
def segment(dataset: dsl.Input[dsl.Dataset], segment: str, code: str, masks: dsl.Output[dsl.Artifact]) -> None:
    """Find the lesion in each image by K-means (k = 2) and morphology; compare with expert masks where there are any."""
    from pathlib import Path

    from components.segment.core import segment as work
    from dermaflow.params import SegmentParams
    from dermaflow.progress import step

    with step("segment"):
        info = work(Path(dataset.path), SegmentParams.from_json(segment), Path(masks.path))
        masks.metadata.update(fallback_share=info["fallback_share"])
