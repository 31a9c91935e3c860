"""Sources and artifacts of 42 small synthetic images: drawn once a session; a test that spoils one gets its own copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.ingest.core import ingest
from components.split.core import split
from dermaflow.params import load_params
from tests.sources import SourceFolder, data_params, split_params
from tests.workspace import ROOT, TINY


@pytest.fixture(scope="session")
def drawn_source(tmp_path_factory: pytest.TempPathFactory) -> SourceFolder:
    """42 phantoms of 29 lesions, 96 x 72 pixels, all seven classes; not to be changed."""
    from dermaflow.phantom import draw_phantoms

    folder = tmp_path_factory.mktemp("drawn") / "source"
    draw_phantoms(folder, images=42, seed=7, size=(96, 72), workers=1)
    return SourceFolder(folder)


@pytest.fixture
def source(tmp_path: Path, drawn_source: SourceFolder) -> SourceFolder:
    """A copy of the 42 phantoms that the test may change."""
    return SourceFolder(Path(shutil.copytree(drawn_source.path, tmp_path / "source")))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, drawn_source: SourceFolder) -> Path:
    """The Dataset artifact of the 42 phantoms; not to be changed."""
    target = tmp_path_factory.mktemp("ingested") / "dataset"
    ingest(data_params(drawn_source.path), target)
    return target


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """What comes before training in a run of the tests' parameters, under the same names; not to be changed."""
    from components.augment.core import augment
    from components.segment.core import segment

    params = load_params("phantom", [*TINY, f"data.source={phantoms}"], ROOT)
    run = tmp_path_factory.mktemp("prepared")
    dataset, splits = run / "ingest/dataset", run / "split/splits"
    ingest(params.data, dataset)
    split(dataset, params.split, splits)
    segment(dataset, params.segment, run / "segment/masks")
    augment(dataset, splits, params.augment, params.mixup, run / "augment/plan")
    return run


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """The Splits artifact of the 42 phantoms, by lesion; not to be changed."""
    target = tmp_path_factory.mktemp("parted") / "splits"
    split(dataset, split_params(), target)
    return target
