"""Validation with real checkpoints: what passes, what stops a run and names its rows, and reports that open offline."""

import json
import re
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

from components.ingest.core import ingest
from components.validate.core import Subject, suite_names, validate
from components.validate.rules import ROWS_NAMED
from dermaflow.artifacts import changed_files, open_artifact
from dermaflow.contracts import VALIDATION_REPORT, read_info
from dermaflow.dataset import Dataset
from dermaflow.errors import GateError, InputError
from tests.sources import VALIDATE, SourceFolder, data_params, with_manifest

ONE_DIAGNOSIS = "one diagnosis for each lesion"
SAME_LABEL = "identical pixels carry the same label"
ENOUGH = "each class has enough lesions to be split (validate.min_lesions_per_class)"
MARKUP = "<script>alert(1)</script>"


def rule(report, name):
    return next(entry for entry in report["rules"] if entry["rule"] == name)


def named(report, name):
    """Ids of the images that a rule names."""
    return {row["image_id"] for row in rule(report, name)["rows"]}


def pages(target):
    return {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*.html")}


def judge(dataset, target, params=VALIDATE):
    """The report on disk, and the message of the gate (None when it passes)."""
    try:
        validate(Subject(dataset), params, target)
    except GateError as error:
        return read_info(target, VALIDATION_REPORT), str(error)
    return read_info(target, VALIDATION_REPORT), None


@pytest.fixture(scope="module")
def clean(tmp_path_factory, dataset):
    """The report of the 42 phantoms as they are drawn."""
    target = tmp_path_factory.mktemp("clean") / "report"
    report, told = judge(dataset, target)
    return SimpleNamespace(report=report, told=told, path=target)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory, drawn_source):
    """Three blocking faults and four warnings in one source, ingested and judged."""
    folder = tmp_path_factory.mktemp("spoilt")
    source = SourceFolder(shutil.copytree(drawn_source.path, folder / "source"))
    torn = source.lesion_with_several_images()
    label = source.metadata.set_index("image_id")["dx"]
    source.set(torn[0], dx="nv" if label[torn[0]] != "nv" else "mel")
    free = [image for name in ("bcc", "akiec") for image in source.ids(name) if image not in torn]
    twins = [free[0], next(image for image in free if label[image] != label[free[0]])]
    shutil.copy(source.image(twins[0]), source.image(twins[1]))
    table = source.metadata
    few = sorted(table.loc[table["dx"] == "vasc", "lesion_id"].unique())[:1]
    kept = (table["dx"] != "vasc") | table["lesion_id"].isin(few)
    source.write_metadata(table[kept])
    for image in table.loc[~kept, "image_id"]:
        source.image(image).unlink()
        source.mask(image).unlink(missing_ok=True)
    odd = [image for image in source.ids("nv") if image not in (*torn, *twins)][:3]
    source.set(odd[0], age="180")
    source.set(odd[1], dx_type="guess")
    source.set(odd[2], sex="")
    ingest(data_params(source.path, max_reject_share=0.2), folder / "dataset")
    target = folder / "report"
    report, told = judge(folder / "dataset", target)
    return SimpleNamespace(
        report=report,
        told=told,
        path=target,
        torn=torn,
        twins=twins,
        few=source.ids("vasc"),
        odd=odd,
        dataset=folder / "dataset",
    )


def test_phantoms_pass(clean, dataset):
    assert clean.told is None
    assert clean.report["success"] is True
    assert (clean.report["blocking"], clean.report["warnings"]) == ([], [])
    assert clean.report["images"] == 42
    assert clean.report["dataset_digest"] == Dataset.open(dataset).content_digest
    assert len(clean.report["rules"]) >= 12
    assert all(entry["success"] and entry["error"] is None for entry in clean.report["rules"])


def test_the_report_is_a_finished_artifact_with_data_docs(clean):
    assert changed_files(open_artifact(clean.path, VALIDATION_REPORT)) == []
    assert "data_docs/index.html" in pages(clean.path)
    assert any(name.startswith("data_docs/validations/") for name in pages(clean.path))


def test_a_gate_that_fails_names_the_rules_some_rows_and_the_page(spoilt):
    assert spoilt.told.startswith("3 blocking rule(s) of suite 'manifest' failed: ")
    for name, image_id in ((ONE_DIAGNOSIS, spoilt.torn[0]), (SAME_LABEL, spoilt.twins[0]), (ENOUGH, spoilt.few[0])):
        assert name in spoilt.told
        assert image_id in spoilt.told
    assert f"Open {spoilt.path / 'data_docs' / 'index.html'}" in spoilt.told
    assert GateError.exit_code == 1


def test_two_diagnoses_of_one_lesion_block(spoilt):
    assert rule(spoilt.report, ONE_DIAGNOSIS)["level"] == "critical"
    assert named(spoilt.report, ONE_DIAGNOSIS) == set(spoilt.torn)
    assert all(row["lesion_id"] for row in rule(spoilt.report, ONE_DIAGNOSIS)["rows"])


def test_the_same_pixels_under_two_labels_block(spoilt):
    assert named(spoilt.report, SAME_LABEL) == set(spoilt.twins)


def test_a_class_of_too_few_lesions_blocks(spoilt):
    assert named(spoilt.report, ENOUGH) == set(spoilt.few)


def test_warnings_are_told_apart_and_would_not_stop_a_run(spoilt):
    told = "\n".join(spoilt.report["warnings"])
    assert f"age is 0 to 120 years (1 rows: {spoilt.odd[0]})" in told
    assert f"the way of diagnosis is one of HAM10000's four (1 rows: {spoilt.odd[1]})" in told
    assert "no two lesions share identical pixels: the split joins those that do (2 rows" in told
    assert "no two lesions share a file's bytes (2 rows" in told
    assert "sex is known" not in told, "one unknown of 40 is within validate.max_unknown_share"
    assert len(spoilt.report["warnings"]) == 4
    assert len(spoilt.report["blocking"]) == 3


def test_warnings_alone_do_not_stop_a_run(dataset, tmp_path):
    def make_odd(table):
        table.loc[0, "age"] = 180
        table.loc[1, "original_width"] = 20
        return table

    report, told = judge(with_manifest(dataset, tmp_path / "d", make_odd), tmp_path / "r")
    assert told is None
    assert report["success"] is True
    assert report["blocking"] == []
    assert [text.split(" (")[0] for text in report["warnings"]] == [
        "the original is 64 to 10,000 pixels wide",
        "age is 0 to 120 years",
    ]


def test_the_report_of_a_failed_gate_is_on_disk_and_its_pages_name_the_rows(spoilt):
    assert spoilt.report["success"] is False
    assert changed_files(open_artifact(spoilt.path, VALIDATION_REPORT)) == []
    text = "".join(page for name, page in pages(spoilt.path).items() if "/validations/" in name)
    for image_id in (*spoilt.torn, *spoilt.twins, spoilt.few[0], spoilt.odd[0]):
        assert image_id in text


REMOTE = re.compile(r"""(?:\bsrc\s*=|<link\b[^>]*\bhref\s*=)\s*["']?\s*(?:https?:)?//[^"'\s>]*""", re.IGNORECASE)


def test_the_pages_load_nothing_from_the_network(clean, spoilt):
    for target in (clean.path, spoilt.path):
        assert pages(target)
        for name, page in pages(target).items():
            assert REMOTE.findall(page) == [], name


def test_the_pages_styles_load_nothing_from_the_network(clean):
    for name, page in pages(clean.path).items():
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]*", page) == [], name


def test_the_page_that_the_message_names_leads_to_the_results_without_scripts(spoilt):
    links = re.findall(
        r'<a\b[^>]*\bhref="([^"#]+)"',
        re.sub(r"<script\b.*?</script>", "", pages(spoilt.path)["data_docs/index.html"], flags=re.DOTALL),
    )
    results = [link for link in links if link.startswith("validations/")]
    assert results
    assert all((spoilt.path / "data_docs" / link).is_file() for link in results)


def test_markup_in_the_data_is_shown_not_run(dataset, tmp_path):
    def with_markup(table):
        table["dx_type"] = table["dx_type"].where(table.index != 0, MARKUP)
        return table

    report, told = judge(with_manifest(dataset, tmp_path / "d", with_markup), tmp_path / "r")
    assert told is None
    assert "HAM10000's four" in report["warnings"][0]
    assert not any(MARKUP in page for page in pages(tmp_path / "r").values())


def test_impossible_measures_block_and_outliers_warn(dataset, tmp_path):
    def spoil(table):
        table.loc[0, "brightness"] = 300.0
        table.loc[1, "entropy"] = float("nan")
        table.loc[2, "sharpness"] = 1.0
        table.loc[3, "brightness"] = 20.0
        return table

    report, _ = judge(with_manifest(dataset, tmp_path / "d", spoil), tmp_path / "r")
    ids = list(Dataset.open(dataset).manifest["image_id"])
    assert named(report, "brightness is a grey level") == {ids[0]}
    assert named(report, "every property of an image is measured") == {ids[1]}
    assert named(report, "no image is blurred: sharpness as in HAM10000 (at least 12.6)") == {ids[2]}
    assert ids[3] in named(report, "no image is nearly black or blown out: brightness as in HAM10000 (58 to 230)")
    assert rule(report, "brightness is a grey level")["rows"][0]["brightness"] == "300"


def test_a_row_without_a_place_in_a_shard_blocks(dataset, tmp_path):
    def spoil(table):
        table.loc[0, "row"] = 10_000
        table.loc[1, "shard"] = 7
        return table

    report, _ = judge(with_manifest(dataset, tmp_path / "d", spoil), tmp_path / "r")
    ids = list(Dataset.open(dataset).manifest["image_id"])
    assert named(report, "each image's place is in a shard that exists") == {ids[0], ids[1]}


def test_duplicates_within_a_lesion_are_a_note_and_across_lesions_a_warning(dataset, tmp_path):
    table = Dataset.open(dataset).manifest
    lesions = table.groupby("lesion_id").groups
    within = next(list(rows[:2]) for rows in lesions.values() if len(rows) > 1)
    same_class = table.groupby("label")["lesion_id"].unique()
    one, other = next(list(found[:2]) for found in same_class if len(found) > 1)
    across = [lesions[one][0], lesions[other][0]]

    def spoil(changed):
        for pair in (within, across):
            changed.loc[pair[1], "pixel_digest"] = changed.loc[pair[0], "pixel_digest"]
        return changed

    report, told = judge(with_manifest(dataset, tmp_path / "d", spoil), tmp_path / "r")
    assert told is None
    assert set(table.loc[across, "image_id"]) <= named(
        report, "no two lesions share identical pixels: the split joins those that do"
    )
    assert set(table.loc[within, "image_id"]) <= named(report, "no lesion has the same pixels twice")
    assert any(text.startswith("no lesion has the same pixels twice") for text in report["notes"])


def test_an_artefact_that_one_class_alone_shows_is_told(dataset, tmp_path):
    def inked(table):
        many = table.loc[table.index.repeat(20)].reset_index(drop=True)
        many["image_id"] = [f"I_{row}" for row in range(len(many))]
        return many.assign(ink_share=many["label"].eq("mel") * 0.1)

    report, _ = judge(with_manifest(dataset, tmp_path / "d", inked), tmp_path / "r")
    rows = {
        row["label"]: row for row in rule(report, "marker ink is beside every class alike (validate.max_artefact_gap)")["rows"]
    }
    assert rows["mel"]["ink_rate"] == "1"
    assert float(rows["mel"]["ink_gap"]) > 0.5


def test_a_rule_names_a_bounded_number_of_rows_and_tells_how_many_there_are(dataset, tmp_path):
    def old(table):
        many = table.loc[table.index.repeat(30)].reset_index(drop=True)
        return many.assign(image_id=[f"I_{row}" for row in range(len(many))], age=150.0)

    report, _ = judge(with_manifest(dataset, tmp_path / "d", old), tmp_path / "r")
    found = rule(report, "age is 0 to 120 years")
    assert found["failing"] == 42 * 30
    assert len(found["rows"]) == ROWS_NAMED
    assert "1260 rows fail; the first 20 are" in "".join(pages(tmp_path / "r").values())


def test_an_image_id_that_stands_twice_blocks(dataset, tmp_path):
    """Ingest quarantines these; a Dataset from elsewhere may hold them."""

    def twice(table):
        table.loc[1, "image_id"] = table.loc[0, "image_id"]
        return table

    report, told = judge(with_manifest(dataset, tmp_path / "d", twice), tmp_path / "r")
    first = Dataset.open(dataset).manifest.loc[0, "image_id"]
    assert f"each image id once (2 rows: {first}, {first})" in told
    assert named(report, "each image id once") == {first}


def test_a_dataset_spoilt_in_other_ways_blocks_rule_by_rule(dataset, tmp_path):
    def spoil(table):
        table.loc[0, "label"] = "melanoma"
        table.loc[1, "lesion_id"] = None
        table.loc[2, "source_digest"] = "sha256:123"
        table.loc[4, "row"] = table.loc[3, "row"]
        return table

    report, told = judge(with_manifest(dataset, tmp_path / "d", spoil), tmp_path / "r")
    ids = list(Dataset.open(dataset).manifest["image_id"])
    assert named(report, "the label is one of the known diagnoses") == {ids[0]}
    assert named(report, "each image belongs to a lesion: the split needs it") == {ids[1]}
    assert named(report, "each image carries the digest of its source bytes") == {ids[2]}
    assert named(report, "each image has its own place in the shards") == {ids[3], ids[4]}
    for image_id in ids[:5]:
        assert image_id in told


def test_an_empty_dataset_is_stopped(dataset, tmp_path):
    report, told = judge(with_manifest(dataset, tmp_path / "d", lambda table: table.iloc[:0]), tmp_path / "r")
    assert report["success"] is False
    assert "there are images" in told


def test_the_least_number_of_lesions_is_a_parameter(dataset, clean, tmp_path):
    fewest = min(Dataset.open(dataset).info["counts"]["lesions_per_class"].values())
    assert clean.report["success"]
    report, _ = judge(dataset, tmp_path / "r", VALIDATE.model_copy(update={"min_lesions_per_class": fewest + 1}))
    assert not rule(report, ENOUGH)["success"]


def test_an_unknown_suite_is_refused_with_those_that_exist(dataset, tmp_path):
    with pytest.raises(InputError, match="unknown suite 'manifst'; allowed: manifest, masks, plan, predictions, splits"):
        validate(Subject(dataset), VALIDATE, tmp_path / "r", ("manifst",))
    assert suite_names() == ("manifest", "masks", "plan", "predictions", "splits")
    assert not (tmp_path / "r").exists()


def test_a_folder_that_is_no_dataset_is_refused(drawn_source, tmp_path):
    with pytest.raises(InputError, match="is not a finished dataset artifact"):
        validate(Subject(drawn_source.path), VALIDATE, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_report_can_be_read_by_a_program(spoilt):
    report = json.loads((spoilt.path / "validation.json").read_text())
    assert {"success", "suite", "suite_digest", "dataset_digest", "images", "rejects", "blocking", "warnings", "rules"} <= set(
        report
    )
    assert pd.DataFrame(report["rules"])["level"].isin(["critical", "warning", "info"]).all()
