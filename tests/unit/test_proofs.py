"""Evidence of proofs that take hours: it stands while code and parameters are what it was made by."""

import json

import pandas as pd

from dermaflow.params import load_params
from tests.proofs.measuring import keep_evidence, stands, unnamed, write_told
from tests.workspace import ROOT


def test_evidence_stands_for_the_code_and_the_parameters_that_it_was_made_by(tmp_path, monkeypatch):
    monkeypatch.setenv("PROVED_COMMIT", "0" * 40)
    path, params = tmp_path / "evidence.json", load_params("tuned", root=ROOT)
    assert not stands(path, params)
    keep_evidence(path, {"minutes": 1.5}, params)
    assert stands(path, params)
    assert json.loads(path.read_text())["minutes"] == 1.5
    assert stands(path, load_params("tuned", ["explain.images=3", "train.seed=20240101"], ROOT)), "these change no figure"
    assert not stands(path, load_params("tuned", ["train.seed=1"], ROOT))
    told = json.loads(path.read_text())
    told["made_by"]["code"]["train"] = "sha256:of-other-code"
    path.write_text(json.dumps(told))
    assert not stands(path, params)


def test_a_table_that_is_kept_names_no_image_and_has_the_same_lesions(tmp_path):
    table = pd.DataFrame(
        {
            "image_id": ["ISIC_3", "ISIC_1", "ISIC_2"],
            "lesion_id": ["HAM_2", "HAM_1", "HAM_2"],
            "split": ["test", "validation", "test"],
            "label": ["mel", "nv", "mel"],
            "age": [40.0, 50.0, 40.0],
            "logit_mel": [1.234567, -2.0, 0.5],
            "logit_nv": [0.0, 1.0, 3.0],
        }
    )
    write_told(unnamed(table, "fold 0"), tmp_path / "told.csv")
    text, read = (tmp_path / "told.csv").read_text(), pd.read_csv(tmp_path / "told.csv")
    assert not any(word in text for word in ("ISIC", "HAM", "40.0"))
    assert read["image_id"].tolist() == ["fold 0-0", "fold 0-1", "fold 0-2"]
    assert read["lesion_id"].tolist() == ["fold 0-0", "fold 0-1", "fold 0-0"]
    assert read[["split", "label"]].equals(table[["split", "label"]])
    assert read["logit_mel"].tolist() == [1.23457, -2.0, 0.5]
