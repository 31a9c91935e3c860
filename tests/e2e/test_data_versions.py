"""Data under version control: the commands of docs/data.md, run as they stand there, against a real S3 server."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dermaflow.dataset import Dataset
from tests.s3_server import S3Server
from tests.versions import Repository, new_objects
from tests.workspace import ROOT

TRACK, REPRODUCE, GROW = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
SIZE = 128  # pixels a side: small, and shards still outweigh all other files
SHARD_OF_ONE = SIZE * SIZE * 3  # bytes
LATER = 6  # images that come later


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, s3: S3Server, phantoms: Path) -> Repository:
    """A clone of the project whose source are all but the last phantoms, with parameters that suit so few."""
    made = Repository.clone(tmp_path_factory.mktemp("versions") / "clone", s3)
    source = made.path / "data" / "ham10000"
    shutil.copytree(phantoms, source)
    table = metadata(source)
    table.iloc[:-LATER].to_csv(source / "HAM10000_metadata.csv", index=False)
    for name in files_that_come_later(phantoms):
        (source / name).unlink()
    graph = (made.path / "dvc.yaml").read_text().replace("source: data/phantom", "source: data/ham10000", 1)
    (made.path / "dvc.yaml").write_text(graph.replace("--images 420", "--images 21", 1))
    parameters = made.path / "params.yaml"
    values = parameters.read_text().replace("    - resnet50\n    - xception\n", "", 1)
    for name, value in {"image_size": SIZE, "bootstrap": 200, "images": 4, "background": 2}.items():
        values = re.sub(rf"^  {name}: \d+ ", f"  {name}: {value} ", values, flags=re.MULTILINE)
    parameters.write_text(values)
    overlay = made.path / "params" / "phantom.yaml"
    overlay.write_text(re.sub(r"epochs: \d+", "epochs: 2", overlay.read_text().replace("images: 14", "images: 4")))
    made.run('git commit --quiet --all --message "small"')
    return made


def metadata(source: Path) -> pd.DataFrame:
    return pd.read_csv(source / "HAM10000_metadata.csv", dtype=str, keep_default_na=False)


def files_that_come_later(phantoms: Path) -> list[str]:
    ids = metadata(phantoms)["image_id"].iloc[-LATER:]
    return [f"images/{image}.jpg" for image in ids] + [f"masks/{image}_segmentation.png" for image in ids]


def pointer(repository: Repository) -> str:
    return str(yaml.safe_load((repository.path / "data" / "ham10000.dvc").read_text())["outs"][0]["md5"])


def told(repository: Repository, name: str) -> dict:
    return dict(json.loads((repository.path / "artifacts" / name).read_text()))


def test_data_is_tracked_reproduced_grown_and_pulled(repository: Repository, s3: S3Server, phantoms: Path):
    repository.run(TRACK)
    source = repository.objects()
    assert sum(source.values()) >= sum(path.stat().st_size for path in (repository.path / "data").rglob("*.jpg"))

    repository.run(REPRODUCE)
    first = new_objects(source, repository.objects())
    images = 84 - LATER
    assert max(first.values()) > images * SHARD_OF_ONE
    for name in ("dataset/dataset.json", "splits/splits.json"):
        assert pointer(repository) in json.dumps(told(repository, name)), "the revision does not flow on"

    again = repository.run("dvc repro validate-splits")
    assert "Running stage" not in again
    assert "didn't change, skipping" in again

    grow(repository, phantoms)
    before = repository.objects()
    repository.run(GROW)
    moved = new_objects(before, repository.objects())
    assert told(repository, "dataset/dataset.json")["counts"]["images"] == 84
    assert LATER * SHARD_OF_ONE < max(moved.values()) < 2 * LATER * SHARD_OF_ONE, "more than the new shard was pushed"

    repository.run('git add . && git commit --quiet --message "grown"')
    colleague = Repository(repository.path.with_name("colleague"), s3)
    repository.run(f"git clone --quiet . {colleague.path}")
    colleague.run("dvc pull --quiet ingest data/ham10000.dvc")
    ours, theirs = (Dataset.open(place.path / "artifacts" / "dataset") for place in (repository, colleague))
    assert ours.artifact.digest == theirs.artifact.digest
    assert len(list((colleague.path / "data" / "ham10000" / "images").iterdir())) == 84


def grow(repository: Repository, phantoms: Path) -> None:
    """The images that were held back come."""
    source = repository.path / "data" / "ham10000"
    for name in files_that_come_later(phantoms):
        shutil.copy(phantoms / name, source / name)
    (source / "HAM10000_metadata.csv").unlink()  # DVC may have linked it to its cache
    shutil.copy(phantoms / "HAM10000_metadata.csv", source)


def test_an_experiment_runs_and_its_metrics_and_plots_show(repository: Repository):
    repository.run("dvc exp run --quiet -S ++train.learning_rates.cnn=0.001")
    assert told(repository, "registration/registration.json")["facts"]["architecture"] == "cnn"
    shown = json.loads(repository.run("dvc metrics show --json"))
    assert "balanced_accuracy" in json.dumps(shown)
    assert json.loads(repository.run("dvc exp show --json"))
    repository.run("dvc plots show --out plots")
    page = (repository.path / "plots" / "index.html").read_text()
    assert "confusion" in page

    trained = told(repository, "models/cnn/model/model.json")["run"]
    kept = [repository.path / name for name in ("params.yaml", "dvc.lock")]
    before = [path.read_bytes() for path in kept]
    tuned = json.loads(repository.run("dermaflow tune -a cnn -g learning_rate=0.001,0.0001 --json 2>/dev/null"))
    assert [set(trial["settings"]) for trial in tuned["trials"]] == [{"train.learning_rates.cnn"}] * 2
    first, second = tuned["trials"]
    assert trained in (first["mlflow_run"], second["mlflow_run"]), "what the experiment had trained was trained again"
    assert first["difference"] is None
    assert second["difference"]["estimate"] <= 0
    assert tuned["best"] == first["settings"]
    assert {trial["experiment"] for trial in tuned["trials"]} <= set(
        re.findall(r"tune-cnn-\w+", repository.run("dvc exp list"))
    )
    assert [path.read_bytes() for path in kept] == before
    assert "clean" in repository.run("dvc status --quiet && echo clean")
