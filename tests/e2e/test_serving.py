"""`mlflow models serve` of a registered model: files in, calibrated probabilities out, and a reason for what it refuses."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from components.register.core import Evidence
from dermaflow import contracts
from dermaflow.dataset import Dataset
from dermaflow.metrics import softmax
from tests.mlflow_server import model_server
from tests.registries import Registry


@pytest.fixture(scope="module")
def url(two_champions: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serving")
    with model_server(folder, "models:/dermaflow-candidate/1", two_champions.settings.tracking_uri) as found:
        yield found


def asked(url: str, content: Any) -> tuple[int, Any]:
    """Status and answer of a request with JSON."""
    request = urllib.request.Request(  # noqa: S310 - of 127.0.0.1
        f"{url}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def of_files(url: str, *files: bytes) -> tuple[int, Any]:
    return asked(url, {"dataframe_records": [{"image": base64.b64encode(data).decode()} for data in files]})


def test_image_files_get_the_probabilities_that_the_pipeline_gave_them(
    url: str, finished_run: Path, finished_evidence: Evidence
):
    dataset = Dataset.open(finished_evidence.dataset)
    source = finished_run.parent.parent / dataset.info["source"]["uri"]
    predictions = contracts.read_predictions(finished_evidence.evaluation).groupby("split").head(2)
    files = [next(source.rglob(f"{name}.*g")).read_bytes() for name in predictions["image_id"]]
    assert all(data.startswith(b"\xff\xd8") for data in files), "JPEG"
    status, answer = of_files(url, *files)
    temperature = contracts.read_info(finished_evidence.model, contracts.MODEL)["temperature"]
    expected = softmax(predictions[contracts.logit_columns(dataset.classes)].to_numpy() / temperature)
    assert status == 200
    assert [list(row) for row in answer["predictions"]] == [list(dataset.classes)] * len(files)
    np.testing.assert_allclose([list(row.values()) for row in answer["predictions"]], expected, atol=1e-5)


def test_a_png_of_another_size_is_answered(url: str):
    png = cv2.imencode(".png", np.full((300, 400, 3), 180, np.uint8))[1].tobytes()
    status, answer = of_files(url, png)
    assert status == 200
    assert sum(answer["predictions"][0].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"dataframe_records": [{"image": base64.b64encode(b"GIF89a....").decode()}]}, "image 0: unsupported: neither JPEG"),
        ({"dataframe_records": [{"image": ""}]}, "image 0: empty"),
        ({"dataframe_records": [{"image": base64.b64encode(b"\xff\xd8\xff\xe0 cut").decode()}]}, "image 0: "),
        ({"dataframe_records": [{"picture": "aGFsbG8="}]}, "missing inputs ['image']"),
        ({"images": []}, "dataframe_records"),
    ],
)  # fmt: skip
def test_what_is_no_image_gets_400_with_the_reason(url: str, content: Any, reason: str):
    status, answer = asked(url, content)
    assert status == 400
    assert reason in answer
    assert "Traceback" not in answer


def test_one_bad_image_among_good_ones_is_named(url: str):
    good = cv2.imencode(".jpg", np.full((90, 90, 3), 180, np.uint8))[1].tobytes()
    status, answer = of_files(url, good, good[: len(good) // 2])
    assert status == 400
    assert "image 1: " in answer
