"""The dossier's page: whole for any reader, from nowhere but itself, and fit to be seen at desktop and phone width."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from pipelines import dossier as content
from pipelines.audit import export
from tests.browser import IN_A_BROWSER, shows_whole
from tests.e2e.test_report import Page, ends
from tests.registries import Registry

SECTIONS = {
    "what": "What it is",
    "made-from": "What it was made from",
    "who": "Who decided",
    "rules": "By which rules",
    "how-good": "How good, for whom",
    "looks-at": "What it looks at",
    "not-for": "What it is not for",
    "check": "How to check this",
}


@pytest.fixture(scope="module")
def folder(two_champions: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dossier of a champion that took the place of another."""
    target = tmp_path_factory.mktemp("dossier") / "dossier"
    export("dermaflow@champion", two_champions.params(), target)
    return target


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    return folder / content.PAGE


def test_the_page_is_whole_and_can_be_read_with_any_reader(page: Path):
    html = page.read_text()
    read = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert read.open == []
    assert [text for level, text in read.headings if level == 1] == ["dermaflow version 2"]
    assert [text for level, text in read.headings if level == 2] == list(SECTIONS.values())
    levels = [level for level, _ in read.headings]
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [attributes["aria-labelledby"] for _, attributes in read.elements if "aria-labelledby" in attributes]
    links = [attributes["href"].removeprefix("#") for attributes in read.all("a")]
    assert set(named + links) <= set(ids)
    assert SECTIONS.keys() <= set(links)
    assert all(attributes.get("alt") for attributes in read.all("img"))
    assert all(attributes.get("scope") in ("row", "col", "colgroup", "rowgroup") for attributes in read.all("th"))
    assert "undefined" not in read.text.lower()


def test_nothing_is_loaded_from_anywhere(page: Path):
    html = page.read_text()
    read = Page(html)
    told = html.replace("https://dataverse.harvard.edu", "")  # the value of data.repository, as text
    assert not re.search(r"https?://|//cdn|@import|url\(", told)
    assert not [tag for tag, _ in read.elements if tag in ("link", "iframe", "object", "base", "form")]
    assert read.all("script") == [{}]
    assert all(attributes["src"].startswith("data:image/") for attributes in read.all("img"))
    assert len(read.all("img")) >= 5
    assert len(html.encode()) < 15_000_000


def test_every_question_has_its_answer_from_the_document(folder: Path, page: Path):
    document, read = json.loads((folder / content.DOCUMENT).read_text()), Page(page.read_text())
    evidence = document["evidence"]
    for text in (
        *(evidence["intended_use"], evidence["data"]["content_digest"], evidence["model"]["file_digest"], evidence["licence"]),
        *(document["version"]["registered"]["by"], document["ledger"]["head"]["digest"], *evidence["limits"]),
        *(gate["reason"] for decision in document["decisions"] for gate in decision["gates"]),
        *("In use.", "not a medical device", "promotion", "Synthetic images", "Leakage audit"),
    ):
        assert " ".join(text.split()) in read.text
    judged = [*evidence["test"]["per_class"].values(), evidence["test"]["overall"]]
    names = ("sensitivity", "specificity", "precision", "f1", "auroc")
    assert read.tables["per-class"][1:] == [[value for name in names for value in ends(row[name])] for row in judged]
    assert len(read.tables["moves"]) == 1 + len(document["history"]) == 3


@IN_A_BROWSER
@pytest.mark.parametrize("width", [1280, 390])
def test_it_shows_in_a_browser_at_desktop_and_phone_width(page: Path, tmp_path: Path, width: int):
    shows_whole(tmp_path, page, width, "dossier", tuple(SECTIONS))
