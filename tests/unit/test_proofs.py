"""Evidence of proofs that take hours: it stands while code and parameters are what it was made by."""

import json

from dermaflow.params import load_params
from tests.proofs.measuring import keep_evidence, stands
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
