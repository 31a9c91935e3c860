"""The study's own protocol: eight classes, balanced before a random split; measured, marked, and never promoted."""

from __future__ import annotations

import json

import pandas as pd

from tests.workspace import TINY, Workspace, sets

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc", "normal")
SMALL = (*TINY, "data.source=data/phantom", "train.architectures=[cnn]", "train.epochs=1", "explain.images=2",
         "promote.mode=enabled", *(f"augment.targets.{name}=20" for name in CLASSES))  # fmt: skip
MARK = "paper protocol: leaks, not promotable"


def test_the_paper_profile_shows_its_leakage_and_can_not_be_promoted(workspace: Workspace):
    policy = workspace.path / "mlflow" / "policy.yaml"
    policy.write_text(policy.read_text().replace("allow_synthetic: false", "allow_synthetic: true"))
    result = workspace.json("run", "--profile", "paper", *sets(*SMALL))

    assert result["outcome"] == "refused"
    gates = {gate["name"]: gate for gate in result["gates"]}
    assert gates["not_synthetic"]["verdict"] == "pass"
    assert (gates["lesion_split"]["verdict"], gates["lesion_split"]["reason"]) == ("fail", MARK)
    assert gates["leakage"]["verdict"] == "fail"

    run = workspace.path / "runs" / result["run_id"]
    dataset = json.loads((run / "ingest/dataset/dataset.json").read_text())
    splits = json.loads((run / "split/splits/splits.json").read_text())
    manifest = pd.read_parquet(run / "ingest/dataset/manifest.parquet")
    assert dataset["source"]["mark"] == splits["mark"] == MARK
    assert dataset["class_order"] == list(CLASSES)
    assert manifest["label"].value_counts().to_dict() == dict.fromkeys(CLASSES, 20)
    assert set(manifest.loc[manifest["label"] == "normal", "parent_id"]) <= set(
        pd.read_parquet(run / "ingest-originals/dataset/manifest.parquet")["image_id"]
    )
    assert splits["leakage"]["all"]["augmented"] > 0

    (version,) = workspace.versions()
    assert version["tags"]["dermaflow.mark"] == MARK
    page = (run / "report.html").read_text()
    assert "Paper protocol: leaks, not promotable." in page
    assert "Balanced before the split" in page
    assert "squares of phantom&#39;s own images" in page or "squares of phantom's own images" in page
