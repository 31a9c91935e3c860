"""The ingest step from a shell."""

from components.ingest.core import ingest
from dermaflow import places
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("ingest"):
    options, params = step_arguments("ingest", "Read a source of images into a Dataset.", "dataset")
    ingest(params.data, options.dataset, places.state() / "ingest")
