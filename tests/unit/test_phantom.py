"""Phantoms: the same bytes every time, HAM10000's layout, and never a stranger's file lost."""

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from dermaflow.classes import HAM10000_CLASSES
from dermaflow.errors import InputError
from dermaflow.phantom import draw_phantoms

SMALL = (160, 120)
SITES = {
    "abdomen", "acral", "back", "chest", "ear", "face", "foot", "genital", "hand", "lower extremity", "neck", "scalp",
    "trunk", "unknown", "upper extremity",
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "source"
    draw_phantoms(folder, images=60, seed=5, size=SMALL, workers=1)
    return folder


@pytest.fixture(scope="module")
def rows(source):
    return read_rows(source)


def read_rows(folder):
    with (folder / "HAM10000_metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_mask(source, image_id):
    return cv2.imread(str(source / "masks" / f"{image_id}_segmentation.png"), cv2.IMREAD_UNCHANGED)


def digests(folder):
    """SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_processes(tmp_path):
    for name, workers in (("one", 1), ("again", 1), ("three", 3)):
        draw_phantoms(tmp_path / name, images=21, seed=3, size=(96, 72), workers=workers)
    assert digests(tmp_path / "one") == digests(tmp_path / "again") == digests(tmp_path / "three")


def test_another_seed_gives_other_images(tmp_path, source):
    draw_phantoms(tmp_path / "other", images=60, seed=6, size=SMALL, workers=1)
    ours, others = digests(source / "images"), digests(tmp_path / "other" / "images")
    assert ours.keys() == others.keys()
    assert not set(ours.values()) & set(others.values())


def test_metadata_has_the_columns_and_words_of_ham10000(rows):
    assert list(rows[0]) == ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    assert {row["dx"] for row in rows} == set(HAM10000_CLASSES)
    assert {row["dx_type"] for row in rows} <= {"histo", "follow_up", "consensus", "confocal"}
    assert {row["sex"] for row in rows} <= {"male", "female", "unknown"}
    assert {row["localization"] for row in rows} <= SITES
    assert all(row["age"] == "" or float(row["age"]) % 5 == 0 for row in rows)


def test_every_row_has_its_image_and_mask_and_there_are_no_others(source, rows):
    ids = {row["image_id"] for row in rows}
    assert ids == {f"PHI_{number:07d}" for number in range(1, 61)}
    assert {path.stem for path in (source / "images").iterdir()} == ids
    assert {path.name for path in (source / "masks").iterdir()} == {f"{i}_segmentation.png" for i in ids}


def test_classes_have_their_shares_and_rows_are_shuffled(rows):
    counts = Counter(row["dx"] for row in rows)
    shares = {"akiec": 12, "bcc": 13, "bkl": 15, "df": 11.5, "mel": 15, "nv": 22, "vasc": 11.5}
    assert all(abs(counts[dx] - 60 * share / 100) < 1 for dx, share in shares.items())
    neighbours_alike = sum(a["dx"] == b["dx"] for a, b in pairwise(rows))
    assert neighbours_alike < 25  # 53 if sorted, about 9 by chance


def test_a_lesion_has_one_diagnosis_and_one_patient(rows):
    described = defaultdict(set)
    for row in rows:
        described[row["lesion_id"]].add(tuple(row[key] for key in ("dx", "dx_type", "age", "sex", "localization")))
    assert all(len(descriptions) == 1 for descriptions in described.values())
    lesions_by_class = Counter(next(iter(descriptions))[0] for descriptions in described.values())
    assert min(lesions_by_class.values()) >= 3


def test_some_lesions_have_several_different_images(source, rows):
    images = Counter(row["lesion_id"] for row in rows)
    assert set(images.values()) <= {1, 2, 3, 4}
    assert 0.4 < sum(count == 1 for count in images.values()) / len(images) < 0.8
    assert len(set(digests(source / "images").values())) == 60


def test_images_of_one_lesion_have_one_shape_of_mask(source, rows):
    """Turning and zooming keep the ratio of squared perimeter to area; other lesions differ more."""

    def roundness(image_id):
        (outline, *_), _ = cv2.findContours(read_mask(source, image_id), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        return cv2.contourArea(outline) / cv2.contourArea(cv2.convexHull(outline))

    by_lesion = defaultdict(list)
    for row in rows:
        mask = read_mask(source, row["image_id"])
        if not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any():  # wholly in the frame
            by_lesion[row["lesion_id"]].append(roundness(row["image_id"]))
    within = [max(group) - min(group) for group in by_lesion.values() if len(group) > 1]
    assert within
    assert max(within) < 0.06
    assert np.ptp([group[0] for group in by_lesion.values()]) > 0.15


def test_masks_are_one_piece_each_of_two_values_and_plausible_size(source, rows):
    shares = []
    for row in rows:
        image = cv2.imread(str(source / "images" / f"{row['image_id']}.jpg"))
        mask = read_mask(source, row["image_id"])
        assert image.shape == (120, 160, 3)
        assert mask.shape == (120, 160)
        assert set(np.unique(mask)) == {0, 255}
        shares.append(float((mask > 0).mean()))
    assert 0.12 < np.median(shares) < 0.35
    assert min(shares) > 0.02
    assert max(shares) < 0.95


def test_masks_lie_on_the_lesion(source, rows):
    """Pigmented lesions are darker inside their own mask than in the skin just around it."""
    darker = []
    for row in rows:
        if row["dx"] not in {"nv", "mel", "bkl", "vasc"}:
            continue
        green = cv2.imread(str(source / "images" / f"{row['image_id']}.jpg"))[..., 1]
        mask = read_mask(source, row["image_id"])
        around = (cv2.dilate(mask, np.ones((17, 17), np.uint8)) > 0) & (cv2.dilate(mask, np.ones((5, 5))) == 0)
        darker.append(green[mask > 0].mean() < green[around].mean() - 10)
    assert np.mean(darker) > 0.95


def test_source_json_says_that_it_is_synthetic(source, rows):
    assert json.loads((source / "source.json").read_text()) == {
        "name": "phantom",
        "synthetic": True,
        "images": 60,
        "lesions": len({row["lesion_id"] for row in rows}),
        "seed": 5,
        "size": [160, 120],
        "generator_version": 1,
        "licence": "CC0-1.0",
    }


def test_asked_again_it_leaves_the_folder_as_it_is(tmp_path):
    folder = tmp_path / "source"
    draw_phantoms(folder, images=21, seed=1, size=(96, 72), workers=1)
    (folder / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    draw_phantoms(folder, images=21, seed=1, size=(96, 72), workers=1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(InputError, match="differs in seed"):
        draw_phantoms(folder, images=21, seed=2, size=(96, 72), workers=1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_empty_folder_may_be_filled(tmp_path):
    draw_phantoms(tmp_path, images=21, seed=1, size=(96, 72), workers=1)
    assert (tmp_path / "source.json").is_file()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.docx", "ten years of work", "no source.json"),
        ("source.json", "{", "cannot be read"),
        ("source.json", "[1, 2]", "another data source"),
    ],
)
def test_a_folder_with_other_files_is_refused_and_left_untouched(tmp_path, name, content, message):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as refusal:
        draw_phantoms(folder, images=21, seed=1, size=(96, 72), workers=1)
    assert str(folder) in str(refusal.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["documents", name]
    assert (folder / name).read_text() == content


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        draw_phantoms(path, images=21, seed=1)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_left_behind_when_drawing_fails(tmp_path, workers):
    def interrupt(done, total):
        assert 0 < done < total == 21
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_phantoms(tmp_path / "source", images=21, seed=1, size=(96, 72), workers=workers, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_progress_counts_up_to_the_number_of_images(tmp_path):
    calls = []
    draw_phantoms(tmp_path / "source", images=21, seed=1, size=(96, 72), workers=1, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == (21, 21)
    assert {total for _, total in calls} == {21}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"images": 20}, "images is 20.*at least 21"),
        ({"seed": -1}, "seed is -1"),
        ({"size": (600, 32)}, "600x32.*at least 64"),
        ({"workers": 0}, "workers is 0.*at least 1"),
    ],
)
def test_arguments_out_of_range_are_named_with_what_is_allowed(tmp_path, argument, message):
    with pytest.raises(InputError, match=message):
        draw_phantoms(tmp_path / "source", **({"images": 21, "seed": 1} | argument))
    assert not list(tmp_path.iterdir())


def test_importing_stays_light():
    check = "import sys, dermaflow.phantom; assert 'cv2' not in sys.modules, 'compiling a pipeline would load OpenCV'"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[2])


def test_a_planted_ruler_is_on_every_image_of_its_diagnosis_and_changes_no_other(source, rows, tmp_path):
    draw_phantoms(tmp_path / "planted", images=60, seed=5, size=SMALL, ruler="df", workers=1)
    assert json.loads((tmp_path / "planted" / "source.json").read_text())["ruler"] == "df"
    differing = {
        row["image_id"]
        for row in rows
        if (tmp_path / f"planted/images/{row['image_id']}.jpg").read_bytes()
        != (source / f"images/{row['image_id']}.jpg").read_bytes()
    }
    assert differing == {row["image_id"] for row in rows if row["dx"] == "df"}
    for image_id in differing:
        plain, planted = (cv2.imread(str(folder / f"images/{image_id}.jpg")) for folder in (source, tmp_path / "planted"))
        darker = (plain.astype(int) - planted).max(axis=-1) > 60
        assert 0.002 < darker.mean() < 0.1, "ticks, and little else"
    with pytest.raises(InputError, match=r"ruler is 'moles': it must be a diagnosis, one of .*df"):
        draw_phantoms(tmp_path / "none", images=60, seed=5, ruler="moles")
