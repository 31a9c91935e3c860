"""What tests of the cluster's commands share: images in a real S3, a real MLflow, and a stub of the KFP API."""

from __future__ import annotations

import pytest

from tests.kfp_stub import KfpStub
from tests.local_server import running
from tests.mlflow_server import mlflow_server

BUCKET = "cluster-images"
SOURCE = f"s3://{BUCKET}/drawn"


@pytest.fixture(scope="session")
def bucket(s3, tmp_path_factory):
    """The S3 server, with 42 phantoms below SOURCE."""
    from dermaflow.phantom import draw_phantoms

    folder = tmp_path_factory.mktemp("drawn") / "source"
    draw_phantoms(folder, images=42, seed=7, size=(96, 72), workers=1)
    s3.make_bucket(BUCKET)
    s3.upload(folder, BUCKET, "drawn")
    return s3


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def kfp():
    with running(KfpStub()) as stub:
        yield stub
