"""The select step: by validation only, results before pipeline checks, ties by name, and what is handed on."""

import json

import numpy as np
import pandas as pd
import pytest

from components.select.core import candidate_model, hand_on, select
from dermaflow import contracts
from dermaflow.artifacts import new_artifact, open_artifact, write_json
from dermaflow.errors import InputError
from dermaflow.metrics import evaluate_predictions
from dermaflow.params import EvaluateParams

PARAMS = EvaluateParams(bootstrap=300, specificity=0.9, seed=1)
CLASSES = ("mel", "nv", "vasc")


def predict(skill, *, seed=0, images=300, test_skill=None):
    """Predictions whose classes are told apart better with more skill; the noise is that of the seed."""
    labels = np.arange(2 * images) % 3
    logits = np.random.default_rng(seed).normal(size=(2 * images, 3)).astype(np.float32)
    split = np.repeat(["validation", "test"], images)
    logits[np.arange(2 * images), labels] += np.where(split == "test", skill if test_skill is None else test_skill, skill)
    head = {
        "image_id": [f"image{row:04d}" for row in range(2 * images)],
        "lesion_id": [f"lesion{row:04d}" for row in range(2 * images)],
        "split": split,
        "label": [CLASSES[label] for label in labels],
    }
    return pd.DataFrame({**head, **{f"logit_{name}": logits[:, k] for k, name in enumerate(CLASSES)}})


def write(folder, architecture, predictions, *, pipeline_check=False, classes=CLASSES):
    judged = {
        split: evaluate_predictions(predictions[predictions["split"] == split], CLASSES, bootstrap=300, seed=1)
        for split in ("validation", "test")
    }
    with new_artifact(folder / architecture, contracts.EVALUATION) as building:
        predictions.to_parquet(building / "predictions.parquet", index=False)
        info = {"architecture": architecture, "pipeline_check": pipeline_check, "classes": list(classes), **judged}
        write_json(building / "metrics.json", info)
    return folder / architecture


def write_model(folder, architecture):
    with new_artifact(folder / f"model-{architecture}", contracts.MODEL) as building:
        (building / "model.keras").write_bytes(architecture.encode())
        write_json(building / "model.json", {"architecture": architecture})
    return folder / f"model-{architecture}"


def test_the_best_on_validation_wins_with_the_interval_of_its_lead(tmp_path):
    strong = write(tmp_path, "resnet50", predict(2.5))
    weak = write(tmp_path, "cnn", predict(1.0))
    told = select([weak, strong], PARAMS, tmp_path / "selection")
    assert told == contracts.read_info(tmp_path / "selection", contracts.SELECTION)
    assert told["candidate"] == "resnet50"
    assert [entry["architecture"] for entry in told["ranking"]] == ["resnet50", "cnn"]
    lead = told["ranking"][0]["validation"]["estimate"] - told["ranking"][1]["validation"]["estimate"]
    assert told["difference"]["estimate"] == pytest.approx(lead, abs=1e-12)
    assert told["difference"]["low"] > 0
    assert told["coin_toss"] is False
    assert told["reason"].startswith("resnet50 has the highest validation balanced accuracy 0.")
    assert "leads cnn by" in told["reason"]


def test_test_images_have_no_say(tmp_path):
    """Rows and metrics of test images are turned upside down, then spoilt: the selection does not move by a byte."""
    honest = [write(tmp_path / "a", "cnn", predict(1.2, seed=3)), write(tmp_path / "a", "xception", predict(1.6, seed=4))]
    before = select(honest, PARAMS, tmp_path / "before")
    turned = [
        write(tmp_path / "b", "cnn", predict(1.2, seed=3, test_skill=9.0)),
        write(tmp_path / "b", "xception", predict(1.6, seed=4, test_skill=-9.0)),
    ]
    assert select(turned, PARAMS, tmp_path / "after") == before
    for path in turned:
        table = contracts.read_predictions(path)
        table.loc[table["split"] == "test", ["logit_mel", "label"]] = [np.nan, "spoilt"]
        table.to_parquet(path / "predictions.parquet", index=False)
        metrics = json.loads((path / "metrics.json").read_text())
        (path / "metrics.json").write_text(json.dumps({**metrics, "test": "spoilt"}))
    assert select(turned, PARAMS, tmp_path / "spoilt") == before


def test_the_order_of_the_evaluations_is_of_no_consequence(tmp_path):
    paths = [write(tmp_path, name, predict(skill)) for name, skill in [("cnn", 1.0), ("resnet50", 1.1), ("xception", 0.9)]]
    assert select(paths, PARAMS, tmp_path / "one") == select(paths[::-1], PARAMS, tmp_path / "two")


def test_a_lead_within_the_noise_is_called_a_coin_toss(tmp_path):
    paths = [write(tmp_path, "cnn", predict(1.5, seed=5)), write(tmp_path, "xception", predict(1.55, seed=6))]
    told = select(paths, PARAMS, tmp_path / "selection")
    assert told["difference"]["low"] <= 0 <= told["difference"]["high"]
    assert told["coin_toss"] is True
    assert "coin toss" in told["reason"]


def test_equal_models_go_by_name(tmp_path):
    same = predict(1.5)
    paths = [write(tmp_path, name, same) for name in ("xception", "resnet50")]
    told = select(paths, PARAMS, tmp_path / "selection")
    assert told["candidate"] == "resnet50"
    assert told["difference"] == {"estimate": 0, "low": 0, "high": 0}
    assert told["coin_toss"] is True
    assert "draws with xception, so the order of the names decides" in told["reason"]


def test_a_random_backbone_does_not_win_over_a_result(tmp_path):
    result = write(tmp_path, "cnn", predict(0.3))
    check = write(tmp_path, "resnet50", predict(3.0), pipeline_check=True)
    told = select([check, result], PARAMS, tmp_path / "selection")
    assert told["candidate"] == "cnn"
    assert [entry["pipeline_check"] for entry in told["ranking"]] == [False, True]
    assert (told["runner_up"], told["difference"], told["coin_toss"]) == (None, None, False)
    assert "only architecture that is a result" in told["reason"]


def test_random_backbones_among_themselves_are_chosen_from_and_said_to_be_no_result(tmp_path):
    paths = [write(tmp_path, name, predict(skill), pipeline_check=True) for name, skill in [("resnet50", 1), ("xception", 2)]]
    told = select(paths, PARAMS, tmp_path / "selection")
    assert told["candidate"] == "xception"
    assert "random backbones, a check of the pipeline and no result" in told["reason"]
    assert told["runner_up"] == "resnet50"


def test_one_architecture_is_its_own_choice(tmp_path):
    told = select([write(tmp_path, "cnn", predict(1.0))], PARAMS, tmp_path / "selection")
    assert told["candidate"] == "cnn"
    assert told["difference"] is None
    assert told["reason"].startswith("cnn is the only architecture, with validation balanced accuracy 0.")


def test_what_can_not_be_compared_is_refused(tmp_path):
    cnn = write(tmp_path, "cnn", predict(1.0))
    fewer = write(tmp_path, "resnet50", predict(1.0).iloc[1:])
    other = write(tmp_path, "xception", predict(1.0), classes=("nv", "mel", "vasc"))
    blind = write(tmp_path / "blind", "resnet50", predict(1.0).query("split == 'test'"))
    for paths, message in [
        ([], "no evaluation to select from"),
        ([cnn, cnn], "several evaluations are of 'cnn'"),
        ([cnn, fewer], "different validation images"),
        ([cnn, other], "different classes"),
        ([cnn, blind], "judges no validation image"),
        ([cnn, tmp_path], "not a finished evaluation artifact"),
    ]:
        with pytest.raises(InputError, match=message):
            select(paths, PARAMS, tmp_path / "selection")
    assert not (tmp_path / "selection").exists()


def test_the_candidate_goes_on_with_its_digests(tmp_path):
    judged = [write(tmp_path, "cnn", predict(1.0)), write(tmp_path, "resnet50", predict(2.0))]
    trained = [write_model(tmp_path, "cnn"), write_model(tmp_path, "resnet50")]
    select(judged, PARAMS, tmp_path / "selection")
    assert candidate_model(tmp_path / "selection", trained) == trained[1]
    hand_on(tmp_path / "selection", trained, judged, tmp_path / "candidate", tmp_path / "evaluation")
    for copy, original, kind in [("candidate", trained[1], contracts.MODEL), ("evaluation", judged[1], contracts.EVALUATION)]:
        assert open_artifact(tmp_path / copy, kind).digest == open_artifact(original, kind).digest
    assert (tmp_path / "candidate" / "model.keras").read_bytes() == b"resnet50"


def test_a_candidate_without_its_model_or_with_a_changed_one_goes_nowhere(tmp_path):
    judged = [write(tmp_path, "cnn", predict(1.0))]
    select(judged, PARAMS, tmp_path / "selection")
    with pytest.raises(InputError, match=r"names 'cnn', which 0 of the given artifacts are of \(given: resnet50\)"):
        candidate_model(tmp_path / "selection", [write_model(tmp_path, "resnet50")])
    model = write_model(tmp_path, "cnn")
    (model / "model.keras").write_bytes(b"tampered")
    with pytest.raises(InputError, match=r"model\.keras has changed since it was written"):
        hand_on(tmp_path / "selection", [model], judged, tmp_path / "candidate", tmp_path / "evaluation")
    assert not (tmp_path / "candidate").exists()
