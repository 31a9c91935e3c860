"""KFP component of the ingest step."""

from kfp import dsl

from dermaflow.images import DATA


@dsl.component(base_image=DATA, install_kfp_package=False)
def ingest(
    data: str, source_digest: str, code: str, dataset: dsl.Output[dsl.Dataset], source: dsl.Input[dsl.Artifact] = None
) -> None:
    """Read a source into uint8 shards and a manifest; files that can not be used go to quarantine.

    `source` is one that an earlier step wrote, whole, in the place of data.source. `source_digest` and `code` are there for
    the cache: they change when the source or the step's code does.
    """
    from pathlib import Path

    from components.ingest.core import ingest as work
    from dermaflow import places
    from dermaflow.params import DataParams
    from dermaflow.progress import step

    with step("ingest"):
        params = DataParams.from_json(data)
        state = places.state() / "ingest"
        if source is not None:
            params, state = params.model_copy(update={"source": source.path, "subset": None}), None
        info = work(params, Path(dataset.path), state)
        dataset.metadata.update(content_digest=info["content_digest"], images=info["counts"]["images"])
