"""The run report: one self-contained, deterministic page that says what the artifacts say, also of a failed run."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.report.page import duration, pretty
from dermaflow.errors import InputError
from dermaflow.figures import figures
from dermaflow.metrics import softmax
from dermaflow.params import EvaluateParams
from pipelines.report import write_report
from tests.browser import ASKED_FOR, EMPTY, IN_A_BROWSER, asked, chromium, shows_whole

SECTIONS = ("Data", "Augmentation", "Segmentation", "Training", "Evaluation", "Explanation", "Decision", "Pipeline", "Limits")
VOID = {"meta", "img", "br", "rect"}


class Page(HTMLParser):
    """What a reader finds on the page: elements with their attributes, headings, table cells, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.tables: dict[str, list[list[float]]] = {}  # exact values of <data>, row by row
        self.text = ""
        self.open: list[str] = []
        self._rows: list[list[float]] = []
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))
        elif tag == "table":
            self._rows = self.tables[attributes["aria-labelledby"]] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag == "data" and "table" in self.open:
            self._rows[-1].append(float(attributes["value"]))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data
            if self.open and re.fullmatch("h[1-6]", self.open[-1]):
                level, text = self.headings[-1]
                self.headings[-1] = (level, text + data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(folder: Path) -> tuple[str, Page]:
    html = write_report(folder).read_text()
    return html, Page(html)


def ends(interval: dict) -> list[float]:
    """What a page shows of an interval: the estimate and its bounds, as far as they are defined."""
    return [interval[end] for end in ("estimate", "low", "high") if interval[end] is not None]


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that may be spoilt, without what the report does not read."""
    unread = shutil.ignore_patterns("*.keras", "*.npz", "mask-*", "truth-*", "for-loop*", "data_docs", "report.html")
    return Path(shutil.copytree(finished_run, tmp_path / finished_run.name, ignore=unread))


def fail_at(run: Path, step: str, state: str | None = "FAILED") -> None:
    """Leave the run as it is when `step` fails (or, without a state, when it is interrupted there)."""
    order = ("ingest", "validate", "split", "augment", "segment")  # KFP's own order of independent steps may differ
    tasks = json.loads((run / "tasks.json").read_text())
    tasks.sort(key=lambda task: order.index(task["task"]) if task["task"] in order else len(order))
    place = [task["task"] for task in tasks].index(step)
    for task in tasks[place:]:
        if task["task"] != "notify":
            shutil.rmtree(run / task["task"])
    kept = tasks[:place] + ([{**tasks[place], "state": state}, tasks[-1]] if state else [])
    write(run / "tasks.json", kept)


# --- a finished run ---


def test_the_page_is_whole_and_can_be_read_with_any_reader(run: Path):
    html, page = read(run)
    assert html.startswith("<!DOCTYPE html>")
    assert page.open == []
    assert [text for level, text in page.headings if level == 1] == [f"Run {run.name}"]
    assert tuple(text for level, text in page.headings if level == 2) == SECTIONS
    levels = [level for level, _ in page.headings]
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [attributes[key] for _, attributes in page.elements for key in ("aria-labelledby",) if key in attributes]
    links = [attributes["href"].removeprefix("#") for attributes in page.all("a")]
    assert set(named + links) <= set(ids)
    assert {text.lower() for text in SECTIONS} <= set(links)
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("scope") in ("row", "col", "colgroup", "rowgroup") for attributes in page.all("th"))
    assert "did not finish" not in page.text
    assert "undefined" not in page.text.lower()


def test_nothing_is_loaded_from_anywhere(run: Path):
    html, page = read(run)
    told = html.replace("https://dataverse.harvard.edu", "")  # the value of data.repository, as text
    assert not re.search(r"https?://|//cdn|@import|url\(", told)
    assert not [value for _, attributes in page.elements for value in attributes.values() if "://" in (value or "")]
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "base", "form")]
    assert page.all("script") == [{}]  # one, in the page itself
    assert all(attributes["src"].startswith("data:image/") for attributes in page.all("img"))
    assert len(page.all("img")) >= 7 + 9  # a sample of each class, and the artifacts' own pictures
    assert len(html.encode()) < 15_000_000


def test_the_same_artifacts_give_the_same_bytes(run: Path, tmp_path: Path):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    elsewhere = Path(shutil.copytree(run, tmp_path / "elsewhere" / run.name))
    assert write_report(elsewhere).read_bytes() == first
    assert [path.name for path in run.glob("*report.html*")] == ["report.html"]  # no temporary file is left


def test_every_figure_is_the_one_in_its_artifact(run: Path):
    _, page = read(run)

    metrics = json.loads((run / "select/evaluation/metrics.json").read_text())
    judged = [*metrics["test"]["per_class"].values(), metrics["test"]["overall"]]
    names = ("sensitivity", "specificity", "precision", "f1", "auroc")
    assert page.tables["per-class"][1:] == [[v for name in names for v in ends(row[name])] for row in judged]

    test = metrics["test"]
    questions = ("sensitivity", "specificity", "ppv", "npv", "auroc")
    points = [[p["threshold"], *(v for name in questions for v in ends(p[name]))] for p in test["operating_points"].values()]
    assert page.tables["operating-points"][1:] == points
    stages = [[v for name in ("nll", "brier", "ece") for v in ends(told[name])] for told in test["calibration"].values()]
    assert page.tables["calibration"][1:] == stages
    assert page.tables["abstention"][1:] == [[v for row in test["abstention"] for v in ends(row["accuracy"])]]
    groups = [group for members in test["subgroups"].values() for group in members.values()]
    asked = [
        [g["balanced_accuracy"], g["accuracy"], g["melanoma"]["sensitivity"], g["malignant"]["sensitivity"]] for g in groups
    ]
    rows = [[v for interval in row for v in ends(interval)] for row in asked]
    assert [row for row in page.tables["subgroups"] if row] == [row for row in rows if row]
    assert page.text.count("too few lesions") == sum(group["n_lesions"] < metrics["least_lesions"] for group in groups) > 0

    for name, row in zip(("cnn", "resnet50", "xception"), page.tables["architectures"][2:], strict=True):
        metrics = json.loads((run / f"evaluate-{name}/evaluation/metrics.json").read_text())
        validation, test = metrics["validation"]["overall"], metrics["test"]["overall"]
        shown = [validation[key] for key in ("balanced_accuracy", "auroc")]
        shown += [test[key] for key in ("balanced_accuracy", "accuracy", "auroc")]
        shown += [metrics["test"]["per_class"]["mel"]["sensitivity"]]
        assert row == [v for interval in shown for v in ends(interval)]

    masks = json.loads((run / "segment/masks/masks.json").read_text())
    dice = [entry["mean_dice"] for entry in (*masks["classes"].values(), masks)]
    assert [row[0] for row in page.tables["dice"][1:-1]] == dice

    decision = json.loads((run / "promote/decision/decision.json").read_text())
    gates = [[v for v in (*ends(gate), gate["threshold"]) if v is not None] for gate in decision["gates"]]
    assert page.tables["gates"][1:] == gates

    tasks = json.loads((run / "tasks.json").read_text())
    assert [row for row in page.tables["steps"] if row] == [[task["seconds"]] for task in tasks]


def test_every_figure_of_the_candidate_is_the_one_computed_afresh_from_its_predictions(run: Path):
    """By scikit-learn, and with every interval by the step's own function: the artifact's figures are not looked at."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

    _, page = read(run)
    table = pd.read_parquet(run / "select/evaluation/predictions.parquet")
    classes = json.loads((run / "ingest/dataset/dataset.json").read_text())["class_order"]
    params = json.loads((run / "request.json").read_text())["params"]["evaluate"]
    test = table[table["split"] == "test"]
    logits = test[[f"logit_{name}" for name in classes]].to_numpy()
    answers, scores = np.array(classes)[logits.argmax(axis=1)], softmax(logits)
    afresh = figures(table, classes, EvaluateParams(**params))
    validation, fresh = afresh["validation"], afresh["test"]

    for place, name in enumerate(classes):
        holds, said, own = test["label"] == name, answers == name, fresh["per_class"][name]
        by_hand = {
            "sensitivity": recall_score(holds, said),
            "specificity": recall_score(~holds, ~said),
            "precision": precision_score(holds, said, zero_division=0),
            "f1": f1_score(holds, said, zero_division=0),
            "auroc": roc_auc_score(holds, scores[:, place]),
        }
        for figure, value in by_hand.items():
            assert own[figure]["estimate"] == pytest.approx(value, abs=1e-9), (name, figure)
        assert page.tables["per-class"][1 + place] == [value for figure in by_hand for value in ends(own[figure])]
    overall = {
        "balanced_accuracy": balanced_accuracy_score(test["label"], answers),
        "accuracy": accuracy_score(test["label"], answers),
        "auroc": roc_auc_score(test["label"], scores, multi_class="ovr", labels=classes),
    }
    for figure, value in overall.items():
        assert fresh["overall"][figure]["estimate"] == pytest.approx(value, abs=1e-9)
    shown = [validation["overall"][figure] for figure in ("balanced_accuracy", "auroc")]
    shown += [*(fresh["overall"][figure] for figure in overall), fresh["per_class"]["mel"]["sensitivity"]]
    assert [end for interval in shown for end in ends(interval)] in page.tables["architectures"][2:]


def test_the_licence_of_the_images_goes_with_the_page(run: Path):
    assert "of phantom, licence CC0-1.0; it goes with them wherever the report goes" in read(run)[1].text
    path = run / "ingest/dataset/dataset.json"
    info = json.loads(path.read_text())
    info["source"]["licence"] = "CC BY-NC 4.0"
    write(path, info)
    assert "licence CC BY-NC 4.0; it goes with them wherever the report goes. Not for commercial use." in read(run)[1].text


def test_the_head_says_what_became_of_the_run(run: Path):
    _, page = read(run)
    decision = json.loads((run / "promote/decision/decision.json").read_text())
    dataset = json.loads((run / "ingest/dataset/dataset.json").read_text())
    request = json.loads((run / "request.json").read_text())
    head = page.text.split("Images and lesions", 1)[0]
    assert "Refused. dermaflow-candidate version 1 (cnn) did not pass" in head
    assert all(gate.replace("_", " ") in head for gate in decision["refused_by"])
    assert "Synthetic images: a check of the pipeline, not a result" in head
    assert "the backbone of resnet50 and xception has random weights" in head
    assert dataset["content_digest"] in head
    assert request["started_at"].replace("T", " ") in head
    assert (json.loads(request["arguments"]["commit"])["commit"] or "not known") in head


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (
            "promoted",
            "Promoted. dermaflow-candidate version 1 (cnn) passed every gate and is now dermaflow version 3, the champion",
        ),
        (
            "already_champion",
            "Champion already. dermaflow-candidate version 1 (cnn) passed every gate and is dermaflow version 3",
        ),
        (
            "awaiting_approval",
            "Waits for approval. dermaflow-candidate version 1 (cnn) passed every gate. The policy asks people",
        ),
        ("would_promote", "Would be promoted. dermaflow-candidate version 1 (cnn) passed every gate. promote.mode is dry_run"),
        ("disabled", "Not promoted. dermaflow-candidate version 1 (cnn) is registered; promotion is disabled"),
    ],
)
def test_every_outcome_has_its_sentence(run: Path, outcome: str, said: str):
    path = run / "promote/decision/decision.json"
    decision = json.loads(path.read_text())
    write(path, {**decision, "outcome": outcome, "refused_by": [], "champion_after": {"name": "dermaflow", "version": 3}})
    assert said in read(run)[1].text


def test_a_random_split_is_named_in_a_banner_with_its_leakage(run: Path):
    path = run / "split/splits/splits.json"
    splits = json.loads(path.read_text())
    splits["leakage"]["all"] |= {"with_relative_in_train": 3, "share": 3 / splits["leakage"]["all"]["test_images"]}
    write(path, {**splits, "strategy": "random", "promotable": False})
    text = read(run)[1].text
    assert f"Split by image, not by lesion: 3 of {splits['leakage']['all']['test_images']} test images have" in text


def test_rejects_and_failing_rows_are_listed(run: Path):
    rejects = pd.DataFrame([("img1", "les1", "data/img1.jpg", "truncated", "cut off after 12 bytes")] * 30,
                           columns=["image_id", "lesion_id", "uri", "reason", "detail"])  # fmt: skip
    rejects.to_parquet(run / "ingest/dataset/rejects.parquet")
    path = run / "validate/report/validation.json"
    report = json.loads(path.read_text())
    rule = {
        **report["rules"][4],
        "success": False,
        "failing": 1,
        "rows": [{"image_id": "img7", "lesion_id": "les7", "label": "wart"}],
    }
    write(path, {**report, "success": False, "blocking": ["the label"], "rules": [rule, *report["rules"]]})
    seen = run / "ingest/dataset/rejects/3.jpg"
    seen.parent.mkdir()
    Image.new("RGB", (120, 90), "red").save(seen)
    page = read(run)[1]
    text = page.text
    shown = [picture for picture in page.all("img") if "rejected image" in picture["alt"]]
    assert [(picture["width"], picture["height"]) for picture in shown] == [("120", "90")]
    assert "30 images: truncated 30" in text
    assert "the first 20" in text
    assert "cut off after 12 bytes" in text
    assert "image_id img7, lesion_id les7, label wart" in text
    assert "Blocking rules failed: the label" in text


# --- text from data ---


HOSTILE = {  # what names in the data become
    "vasc": "<script>alert('vasc')</script>",
    "PHI_": '"><img src=x onerror=alert(1)>',
    "phantom": "</title><script>1",
}


def renamed(value: Any, names: dict[str, str]) -> Any:
    """A JSON value with parts of its keys and texts replaced."""
    if isinstance(value, dict):
        return {renamed(key, names): renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    if isinstance(value, str):
        for old, new in names.items():
            value = value.replace(old, new)
    return value


def test_text_from_data_can_not_become_part_of_the_page(run: Path):
    for path in run.rglob("*.json"):
        if path.name != "artifact.json":
            write(path, renamed(json.loads(path.read_text()), HOSTILE))
    for path in (run / "ingest/dataset/manifest.parquet", run / "split/splits/splits.parquet"):
        table = pd.read_parquet(path)
        texts = {name: [renamed(value, HOSTILE) for value in table[name]] for name in ("image_id", "lesion_id", "label")}
        table.assign(**texts).to_parquet(path)
    html, page = read(run)
    assert html.count("<script") == 1  # the page's own
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert all(attributes["src"].startswith("data:image/") for attributes in page.all("img"))
    assert "<script>alert('vasc')</script>" in page.text  # as text
    assert "&lt;script&gt;" in html
    assert tuple(text for level, text in page.headings if level == 2) == SECTIONS


def test_passwords_in_addresses_are_not_passed_on(run: Path):
    path = run / "request.json"
    request = json.loads(path.read_text())
    request["params"]["register"]["tracking_uri"] = "postgresql://me:hunter2@db.example/mlflow"
    write(path, request)
    html, _ = read(run)
    assert "hunter2" not in html
    assert pretty("postgresql://me:hunter2@db/mlflow") == '"postgresql://me:***@db/mlflow"'


# --- runs that ended early ---

MISSING = {
    "ingest": SECTIONS[:-2],
    "validate": ("Data", "Augmentation", "Segmentation", "Training", "Evaluation", "Explanation", "Decision"),
    "segment": ("Segmentation", "Training", "Evaluation", "Explanation", "Decision"),
    "train-resnet50": ("Training", "Evaluation", "Explanation", "Decision"),
    "explain": ("Explanation", "Decision"),
    "promote": ("Decision",),
}


@pytest.mark.parametrize("step", MISSING)
def test_a_failed_run_says_where_it_failed_and_what_is_missing(run: Path, step: str):
    fail_at(run, step)
    started = {"event": "task_started", "task": step}
    event = {
        "event": "error",
        "step": step.partition("-")[0],
        "message": "<b>the file</b> is no file; give another",
        "exit_code": 2,
    }
    told = "".join(f"::dermaflow {json.dumps(line)}\n" for line in (started, event))
    (run / "run.log").write_text(f"some line\n{told}")
    html, page = read(run)
    assert f"Failed. The run failed at step {step}." in page.text
    assert "<b>the file</b> is no file; give another" in page.text
    assert "<b>the file" not in html
    assert tuple(text for level, text in page.headings if level == 2) == SECTIONS
    parts = dict(re.findall(r'<section id="(\w+)"(.*?)</section>', html, re.DOTALL))
    assert {name for name in SECTIONS if "This step did not finish" in parts[name.lower()]} == set(MISSING[step])
    assert "✗ failed" in page.text
    assert write_report(run).read_text() == html


def test_a_run_that_failed_without_a_word_points_to_its_log(run: Path):
    fail_at(run, "select")
    (run / "run.log").unlink()
    text = read(run)[1].text
    assert "The run failed at step select. No model version was registered. What it said stands in run.log" in text
    assert "cnn" in text.split("Evaluation", 2)[2]  # what was judged before is still shown


def test_an_interrupted_run_is_not_called_failed(run: Path):
    fail_at(run, "split", state=None)
    assert "was interrupted or is still going on: the last step that finished is validate" in read(run)[1].text


def test_a_run_that_never_began_has_a_report_too(run: Path, tmp_path: Path):
    (tmp_path / "bare").mkdir()
    shutil.copy(run / "request.json", tmp_path / "bare")
    text = read(tmp_path / "bare")[1].text
    assert "no step of it has finished" in text
    assert "No step finished." in text


def test_an_artifact_that_can_not_be_read_leaves_the_old_report(run: Path):
    before = write_report(run).read_bytes()
    (run / "select/evaluation/metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics.json is not valid JSON"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


@pytest.mark.parametrize(("seconds", "said"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (165, "2 min 45 s"), (3785, "1 h 3 min")])
def test_durations(seconds: float, said: str):
    assert duration(seconds) == said


# --- in a browser ---


@IN_A_BROWSER
def test_faults_of_a_page_would_be_seen(tmp_path: Path):
    """Errors of a script, pictures that are missing or empty, and whatever the network is asked for."""
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><title>a page</title><script>nothing()</script>")
    with pytest.raises(AssertionError, match="CONSOLE"):
        chromium(tmp_path, page, 400, "--dump-dom")
    buffer = BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    red = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    page.write_text(f"<img alt=missing src=missing.png><img alt=red src={red}><img alt=far src=https://example.org/a.png>")
    assert asked(tmp_path, page, 400, EMPTY) == ["missing", "red", "far"]
    assert asked(tmp_path, page, 400, ASKED_FOR) == ["https://example.org/a.png"]


@IN_A_BROWSER
@pytest.mark.parametrize("width", [1280, 390])
def test_it_shows_in_a_browser_at_desktop_and_phone_width(run: Path, tmp_path: Path, width: int):
    shows_whole(tmp_path, write_report(run), width, "report", tuple(name.lower() for name in SECTIONS))


@IN_A_BROWSER
def test_tables_sort_and_filter(run: Path, tmp_path: Path):
    """By the number that a cell carries, down and up; sums stay where they are, and a long table shows rows with a word."""
    report, tasks = write_report(run), json.loads((run / "tasks.json").read_text())
    head = "page.querySelectorAll('[aria-labelledby=steps] th button')[2]"
    names = "[...page.querySelectorAll('[aria-labelledby=steps] tbody th')].map((cell) => cell.textContent)"
    seconds = {task["task"]: task["seconds"] for task in tasks}
    up = asked(tmp_path, report, 1280, f"({head}.click(), {names})")
    down = asked(tmp_path, report, 1280, f"({head}.click(), {head}.click(), {names})")
    assert sorted(up) == sorted(down) == sorted(seconds)
    assert [seconds[name] for name in up] == sorted(seconds.values())  # two may have taken equally long
    assert [seconds[name] for name in down] == sorted(seconds.values(), reverse=True)
    assert asked(tmp_path, report, 1280, f"({head}.click(), {head}.parentNode.getAttribute('aria-sort'))") == "ascending"

    last = "[...page.querySelectorAll('[aria-labelledby=classes] tbody tr')].at(-1).textContent.includes('all')"
    sort = "page.querySelectorAll('[aria-labelledby=classes] th button')[1].click()"
    assert asked(tmp_path, report, 1280, f"({sort}, {last})") is True

    box = "page.querySelector('[aria-labelledby=rules]').closest('.scroll').previousElementSibling.firstElementChild"
    shown = "[...page.querySelectorAll('[aria-labelledby=rules] tbody tr')].filter((row) => !row.hidden).length"
    event = f"{box}.dispatchEvent(new Event('input'))"
    rules = json.loads((run / "validate/report/validation.json").read_text())["rules"]
    wanted = sum("image" in rule["rule"] for rule in rules)
    assert 0 < wanted < len(rules)
    assert wanted <= asked(tmp_path, report, 1280, f"({box}.value = 'IMAGE', {event}, {shown})") < len(rules)
    assert asked(tmp_path, report, 1280, f"({box}.value = 'no such words', {event}, {shown})") == 0
