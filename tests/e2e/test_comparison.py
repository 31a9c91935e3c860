"""Two runs or models side by side: what a reader is told is what their artifacts say, image by image."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermaflow import contracts
from dermaflow.errors import InputError
from dermaflow.metrics import paired_difference
from dermaflow.params import Params, load_params
from pipelines import comparison
from tests.browser import IN_A_BROWSER, asked, chromium
from tests.e2e.test_report import HOSTILE, Page, renamed, write
from tests.workspace import ROOT

SECTIONS = ("Figures", "What differs", "Explanations", "Time", "How to read this")


@pytest.fixture
def runs(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two runs, `first` and `second`, that may be spoilt."""
    unread = shutil.ignore_patterns("*.keras", "*.npz", "mask-*", "truth-*", "for-loop*", "data_docs", "report.html")
    for name in ("first", "second"):
        shutil.copytree(finished_run, tmp_path / "runs" / name, ignore=unread)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def settings(finished_run: Path) -> Params:
    registry = finished_run.parents[1] / ".dermaflow/mlflow.db"
    return load_params("phantom", ["evaluate.bootstrap=200", f"register.tracking_uri=sqlite:///{registry}"], root=ROOT)


def changed(path: Path, **values: object) -> None:
    write(path, json.loads(path.read_text()) | values)


def another_model(run: Path, wrong: int) -> pd.DataFrame:
    """Let a run's model be another one, which takes up to `wrong` test images that it knew for what they are least."""
    path = run / "select/evaluation/predictions.parquet"
    table, columns = pd.read_parquet(path), contracts.logit_columns(classes_of(run))
    known = table[columns].to_numpy().argmax(axis=1) == table["label"].map(classes_of(run).index).to_numpy()
    places = table.index[(table["split"] == "test") & known][:wrong]
    table.loc[places, columns] = -table.loc[places, columns].to_numpy()
    table.to_parquet(path, index=False)
    registration = run / "register/registration/registration.json"
    facts = json.loads(registration.read_text())["facts"]
    facts["model"]["weights_digest"] = "sha256:another"
    changed(registration, facts=facts)
    return table


def classes_of(run: Path) -> list[str]:
    return json.loads((run / "ingest/dataset/dataset.json").read_text())["class_order"]


def read(one: str, other: str, settings: Params) -> tuple[str, Page]:
    target = comparison.compare(one, other, settings, Path("page.html"))
    html = target.read_text()
    return html, Page(html)


def test_the_page_is_whole_and_stands_alone(runs: Path, settings: Params):
    another_model(runs / "second", wrong=5)
    html, page = read("first", "second", settings)
    assert page.open == []
    assert [text for level, text in page.headings if level == 1] == ["first and second"]
    assert tuple(text for level, text in page.headings if level == 2) == SECTIONS
    assert all(later - earlier <= 1 for earlier, later in pairwise(level for level, _ in page.headings))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"].removeprefix("#") for attributes in page.all("a")} <= set(ids)
    assert len(page.all("img")) == 2 * len(comparison.PICTURES)
    assert all(attributes["src"].startswith("data:") and attributes["alt"] for attributes in page.all("img"))
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", html)
    assert len(html) < 15e6
    assert html == read("first", "second", settings)[0], "the same artifacts give the same bytes"


def test_differences_are_those_of_the_same_images(runs: Path, settings: Params):
    """Computed afresh from the predictions of both."""
    other = another_model(runs / "second", wrong=6)
    _, page = read("first", "second", settings)
    one = contracts.read_predictions(runs / "first/select/evaluation")
    one, other = (table[table["split"] == "test"].sort_values("image_id", ignore_index=True) for table in (one, other))
    classes, how = classes_of(runs / "first"), {"bootstrap": 200, "seed": settings.evaluate.seed}
    expected = paired_difference(other, one, classes, metric="balanced_accuracy", **how)
    assert expected["estimate"] < 0
    assert page.tables["overall"][1][-3:] == list(expected.values())
    of_class = paired_difference(other, one, classes, metric=f"{classes[0]}.sensitivity", **how)
    assert page.tables["classes"][1][-3:] == [value for value in of_class.values() if value is not None]
    assert f"the balanced accuracy of second is {-expected['estimate']:.3f} lower than that of first" in page.text

    right = [table[contracts.logit_columns(classes)].to_numpy().argmax(axis=1) for table in (one, other)]
    label = one["label"].map(classes.index).to_numpy()
    lost = int(((right[0] == label) & (right[1] != label)).sum())
    assert lost > 0
    total = re.search(r"all (\d+) (\d+) (\d+) (\d+) ", spaced(Path("page.html").read_text(), "agreement"))
    assert [int(number) for number in total.groups()][1] == lost
    assert sum(int(number) for number in total.groups()) == len(one)


def spaced(html: str, table: str) -> str:
    """The text of a table, its cells apart."""
    body = html[html.index(f'<table aria-labelledby="{table}"') :]
    return " ".join(re.sub(r"<[^>]+>", " ", body[: body.index("</table>")]).split()) + " "


def test_an_image_that_one_of_them_was_trained_on_is_left_out(runs: Path, settings: Params):
    """Under whatever name: by its bytes or its pixels."""
    another_model(runs / "second", wrong=3)
    path = runs / "second/split/splits/splits.parquet"
    table = pd.read_parquet(path)
    tests, trained = table.index[table["split"] == "test"], table.index[table["split"] == "train"]
    table.loc[trained[:4], ["source_digest", "pixel_digest"]] = table.loc[
        tests[:4], ["source_digest", "pixel_digest"]
    ].to_numpy()
    table.to_parquet(path, index=False)
    _, page = read("first", "second", settings)
    assert f"On the {len(tests) - 4} test images" in page.text
    assert "neither was made with (4 images left out)" in page.text


def test_without_common_test_images_nothing_is_made_up(runs: Path, settings: Params):
    another_model(runs / "second", wrong=3)
    path = runs / "second/split/splits/splits.parquet"
    table = pd.read_parquet(path)
    for column in ("image_id", "source_digest", "pixel_digest"):
        table[column] = "other-" + table[column]
    table.to_parquet(path, index=False)
    _, page = read("first", "second", settings)
    assert "can not be compared image by image: no test image is of both" in page.text
    assert "agreement" not in page.tables
    assert np.isfinite(page.tables["overall"][1]).all()


def test_what_differs_is_listed_and_nothing_else(runs: Path, settings: Params):
    request = json.loads((runs / "second/request.json").read_text())
    request["params"]["train"]["batch_size"] = 99
    request["params"]["data"]["source"] = "<script>alert(1)</script>"
    request["params"]["register"]["tracking_uri"] = "https://me:secret@server"
    write(runs / "second/request.json", request)
    html, page = read("first", "second", settings)
    assert "They are the same model: its weights are equal to the last bit." in page.text
    listed = spaced(html, "parameters")
    assert re.findall(r"(?:data|train|register)\.[a-z_]+", listed) == [
        "data.source", "register.tracking_uri", "train.batch_size",
    ]  # fmt: skip
    assert listed.endswith(" 99 ")
    assert "secret" not in html
    assert "<script>alert(1)" not in html
    assert html.count("<script>") == 1


def test_text_from_data_can_not_become_part_of_the_page(runs: Path, settings: Params):
    another_model(runs / "second", wrong=5)
    for path in (path for path in runs.rglob("*.json") if path.name != "artifact.json"):
        write(path, renamed(json.loads(path.read_text()), HOSTILE))
    for path in runs.rglob("*.parquet"):
        table = pd.read_parquet(path).rename(columns=lambda name: renamed(name, HOSTILE))
        texts = {name: [renamed(value, HOSTILE) for value in table[name]] for name in table.select_dtypes(["object", "string"])}
        table.assign(**texts).to_parquet(path, index=False)
    html, page = read("first", "second", settings)
    assert html.count("<script") == 1  # the page's own
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert "<script>alert('vasc')</script>" in page.text  # as text
    assert tuple(text for level, text in page.headings if level == 2) == SECTIONS


def test_a_registered_version_stands_beside_its_run(runs: Path, settings: Params):
    """Its evidence is fetched from the registry: it needs no run folder."""
    _, by_run = read("first", "second", settings)
    version = json.loads((runs / "first/register/registration/registration.json").read_text())["version"]
    name = f"dermaflow-candidate/{version}"
    _, page = read(name, "dermaflow-candidate@challenger", settings)
    assert page.tables["overall"] == by_run.tables["overall"]
    assert page.tables["worth"] == by_run.tables["worth"]
    assert "Time" not in [text for _, text in page.headings]
    assert f"dermaflow-candidate version {version}, of run" in page.text


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("third", r"'third' is neither a run in runs/ \(there are: first, second\) nor a registered model"),
        ("dermaflow-candidate/99", "no such version in .*; there are: dermaflow-candidate/1"),
        ("dermaflow-candidate@nobody", "no such version in"),
    ],
)
def test_who_is_not_there_is_named_with_who_is(runs: Path, settings: Params, other: str, said: str):
    with pytest.raises(InputError, match=said):
        comparison.compare("first", other, settings, Path("page.html"))
    assert not Path("page.html").exists()


def test_a_run_that_registered_nothing_can_not_be_compared(runs: Path, settings: Params):
    shutil.rmtree(runs / "second/register")
    with pytest.raises(InputError, match="run second has registered no model"):
        comparison.compare("first", "second", settings, Path("page.html"))


@IN_A_BROWSER
def test_it_fits_a_phone(runs: Path, settings: Params, tmp_path: Path):
    another_model(runs / "second", wrong=5)
    page = comparison.compare("first", "second", settings, tmp_path / "page.html")
    chromium(tmp_path, page, 390, f"--screenshot={tmp_path / 'shot.png'}")
    assert asked(tmp_path, page, 390, "page.documentElement.scrollWidth") <= 390
