"""Sources on disk: folders, class folders and archives come out alike; digests follow bytes, and what is known is not read."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.ingest import fingerprints, folder
from components.ingest.core import ingest
from components.ingest.entries import Entries, Entry, FileColumns
from components.ingest.source import METADATA_COLUMNS, REJECT_COLUMNS, open_source
from dermaflow.artifacts import bytes_digest
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.params import Subset
from tests.sources import METADATA_FILE, SourceFolder, data_params


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DERMAFLOW_HOME", str(tmp_path / "home"))


@pytest.fixture
def settled(monkeypatch):
    """Files that a test has just written count as old: as if it had waited for two seconds."""
    monkeypatch.setattr(folder, "RACY_SECONDS", -60.0)


def opened(source: SourceFolder | Path, **changes):
    return open_source(data_params(source.path if isinstance(source, SourceFolder) else source, **changes))


def content_digest(path: Path, target: Path) -> str:
    ingest(data_params(path), target)
    return Dataset.open(target).content_digest


def zipped(source: SourceFolder, *, masks: bool = True) -> SourceFolder:
    """The source as Dataverse gives it: two parts, masks, metadata beside them."""
    images = sorted((source.path / "images").iterdir())
    for part, files in (("1", images[:20]), ("2", images[20:])):
        with zipfile.ZipFile(source.path / f"HAM10000_images_part_{part}.zip", "w", zipfile.ZIP_DEFLATED) as made:
            for path in files:
                made.write(path, path.name)
    with zipfile.ZipFile(source.path / "HAM10000_segmentations_lesion_tschandl.zip", "w") as made:
        for path in sorted((source.path / "masks").iterdir()) if masks else ():
            made.write(path, f"HAM10000_segmentations_lesion_tschandl/{path.name}")
            made.writestr(f"__MACOSX/HAM10000_segmentations_lesion_tschandl/._{path.name}", b"Mac OS X")
    shutil.rmtree(source.path / "images")
    shutil.rmtree(source.path / "masks")
    return source


# --- the contract ---


def test_metadata_images_and_masks_fit_together(drawn_source):
    found = opened(drawn_source)
    assert tuple(found.metadata.columns) == METADATA_COLUMNS
    assert list(found.metadata["image_id"]) == sorted(drawn_source.metadata["image_id"]) == list(found.images)
    assert set(found.masks) <= set(found.images)
    assert tuple(found.refused.columns) == REJECT_COLUMNS
    assert found.refused.empty
    for image_id, entry in list(found.images.items())[::10]:
        path = drawn_source.path / entry.uri
        assert path == drawn_source.image(image_id)
        assert entry.size == path.stat().st_size
        assert found.read(entry) == path.read_bytes()
        assert found.images[image_id] == entry


def test_a_source_may_name_its_own_classes_and_the_images_that_others_were_made_from(source):
    first, second, third, *_ = source.ids("nv")
    table = source.metadata.assign(parent_id="")
    table.loc[table["image_id"] == second, ["dx", "parent_id"]] = ["mole", first]
    table.loc[table["image_id"] == third, "parent_id"] = "../x"
    source.write_metadata(table)
    classes = ["mole", *sorted(set(table["dx"]) - {"mole"})]
    (source.path / "source.json").write_text(json.dumps({"classes": classes, "mark": "drawn by hand"}))
    found = opened(source)
    assert found.classes == tuple(classes)
    assert found.description["mark"] == "drawn by hand"
    assert found.metadata.set_index("image_id").loc[[first, second], "parent_id"].tolist() == ["", first]
    assert found.refused[["image_id", "reason"]].to_numpy().tolist() == [[third, "unsafe_id"]]
    assert "parent_id is '../x'; allowed: empty, or letters" in found.refused["detail"].iloc[0]


def test_an_image_that_is_not_there_is_no_key(drawn_source):
    images = opened(drawn_source).images
    assert "PHI_9999999" not in images
    assert images.get("") is None
    with pytest.raises(KeyError):
        images["zzz"]


def test_files_by_id_are_found_however_their_names_sort():
    columns = FileColumns()
    files = {
        name: Entry(f"{name}.jpg", k, str(k)) for k, name in enumerate(["b", "B", "a.1", "a", "a-1", "a_1", "aa", "10", "9"])
    }
    for name, entry in files.items():
        columns.add(name, entry)
    found = Entries(columns.frame())
    assert dict(found) == files
    assert list(found.in_order()) == [files[name] for name in found]
    assert found.find([*files, "zzz", "", "a.", "å"]) == files
    assert found.find([]) == Entries(FileColumns().frame()).find(["a"]) == {}


def test_a_row_is_known_by_its_line_even_behind_a_cell_of_several_lines(source):
    text = (source.path / METADATA_FILE).read_text().splitlines()
    text[3] = text[3].rsplit(",", 1)[0] + ',"back\nof hand"'
    text[9] = text[9].replace(text[9].split(",")[2], "wart", 1)
    (source.path / METADATA_FILE).write_text("\n".join([*text[:5], "", *text[5:]]) + "\n")
    details = list(opened(source).refused["detail"])
    assert details[0].startswith(f"{METADATA_FILE}, line 4: localization is 'back\\nof hand'; allowed: printable text")
    assert details[1].startswith(f"{METADATA_FILE}, line 12: dx is 'wart'")


def test_every_row_of_an_id_is_refused_and_names_the_others(source):
    table = source.metadata
    source.write_metadata(pd.concat([table, table.iloc[[0]]]))
    refused = opened(source).refused
    assert list(refused["reason"]) == ["duplicate_id"] * 2
    assert "line 2: image_id" in refused["detail"][0]
    assert "stands also in line 44" in refused["detail"][0]
    assert "stands also in line 2;" in refused["detail"][1]


def test_a_refused_row_tells_where_its_image_is(source):
    image_id = source.ids("nv")[0]
    source.set(image_id, dx="wart")
    refused = opened(source).refused
    assert refused.to_dict("records")[0]["uri"] == f"images/{image_id}.jpg"
    assert list(refused["image_id"]) == [image_id], "its file is no stranger"


def test_refusals_stand_in_a_fixed_order(source):
    for name in ("z", "a", "m"):
        shutil.copy(source.image(source.ids("nv")[0]), source.path / "images" / f"{name}.jpg")
    source.set(source.ids("nv")[1], dx="wart")
    source.image(source.ids("nv")[2]).write_bytes(b"")
    refused = opened(source).refused
    assert list(refused["reason"]) == ["unknown_class", "empty", "unlabelled", "unlabelled", "unlabelled"]
    assert list(refused["uri"][2:]) == ["images/a.jpg", "images/m.jpg", "images/z.jpg"]


def test_a_subset_is_not_told_of_what_it_leaves_out(source):
    kept = set(opened(source, subset=Subset(images_per_class=2)).images)
    left = next(image for image in source.ids("nv") if image not in kept)
    source.image(left).write_bytes(b"")
    found = opened(source, subset=Subset(images_per_class=2))
    assert set(found.images) == kept
    assert found.refused.empty


@pytest.mark.parametrize("change", ["append", "rewrite", "replace"])
def test_a_version_changes_with_the_file(source, settled, change):
    image_id = source.ids("nv")[0]
    path, before = source.image(image_id), opened(source).images[image_id].version
    assert opened(source).images[image_id].version == before
    data, times = path.read_bytes(), path.stat()
    if change == "append":
        path.write_bytes(data + b"\0")
    elif change == "rewrite":
        path.write_bytes(data[::-1])
    else:
        shutil.copy2(path, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a time set back hides nothing
    assert opened(source).images[image_id].version != before


def test_a_file_written_just_now_has_a_version_that_never_comes_back(source):
    image_id = source.ids("nv")[0]
    source.image(image_id).touch()
    assert opened(source).images[image_id].version != opened(source).images[image_id].version


# --- layouts ---


def test_the_official_parts_are_read_in_place(source, dataset, tmp_path):
    zipped(source)
    before = sorted(source.path.iterdir())
    found = opened(source)
    assert found.refused.empty
    assert next(iter(found.images.values())).uri.startswith("HAM10000_images_part_1.zip/PHI_")
    assert len(found.masks) == 42
    assert content_digest(source.path, tmp_path / "d") == Dataset.open(dataset).content_digest
    assert sorted(source.path.iterdir()) == before


def test_archives_and_folders_mix(source, dataset, tmp_path):
    (source.path / "more").mkdir()
    with zipfile.ZipFile(source.path / "more" / "part.ZIP", "w") as made:
        for path in sorted((source.path / "images").iterdir())[::3]:
            made.write(path, f"deep/er/{path.name}")
            path.unlink()
    assert content_digest(source.path, tmp_path / "d") == Dataset.open(dataset).content_digest


def test_a_single_archive_may_hold_everything(source, dataset, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as made:
        for path in sorted(source.path.rglob("*")):
            made.write(path, f"ham/{path.relative_to(source.path)}")
    found = opened(tmp_path / "all.zip")
    assert next(iter(found.images.values())).uri.startswith("all.zip/ham/images/PHI_")
    assert content_digest(tmp_path / "all.zip", tmp_path / "d") == Dataset.open(dataset).content_digest


def test_an_archive_of_another_data_set_is_told_once(source):
    with zipfile.ZipFile(source.path / "ISIC2018_Task3_Test_Images.zip", "w") as made:
        for k in range(30):
            made.writestr(f"ISIC_00{k:05d}.jpg", b"x")
    refused = opened(source).refused
    assert refused.to_dict("records") == [
        {
            "image_id": "",
            "lesion_id": "",
            "uri": "ISIC2018_Task3_Test_Images.zip",
            "reason": "unlabelled",
            "detail": "none of the archive's 30 images has a metadata row: passed over whole",
        }
    ]


def test_a_stranger_in_an_archive_of_ours_is_told_by_name(source):
    zipped(source)
    with zipfile.ZipFile(source.path / "HAM10000_images_part_1.zip", "a") as made:
        made.writestr("STRANGER.jpg", b"x")
    assert list(opened(source).refused["uri"]) == ["HAM10000_images_part_1.zip/STRANGER.jpg"]


def test_an_archive_is_read_by_many_threads_at_once(source):
    wanted = {path.name: path.read_bytes() for path in (source.path / "images").iterdir()}
    found = opened(zipped(source))
    with ThreadPoolExecutor(8) as pool:
        entries = list(found.images.in_order()) * 20
        for entry, data in zip(entries, pool.map(found.read, entries), strict=True):
            assert data == wanted[entry.uri.rpartition("/")[2]]


def test_class_folders_are_read_and_say_that_lesions_are_unknown(source, dataset, tmp_path):
    classes = tmp_path / "classes"
    for image_id, label in zip(source.metadata["image_id"], source.metadata["dx"], strict=True):
        (classes / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(source.image(image_id), classes / label)
    shutil.copytree(source.path / "masks", classes / "masks")
    found = opened(classes)
    assert found.description["layout"] == "class_folders"
    assert found.description["lesions"] == "unknown: each image counts as a lesion"
    assert found.refused.empty
    assert list(found.metadata["lesion_id"]) == list(found.metadata["image_id"])
    assert found.metadata["age"].isna().all()
    assert (found.metadata[["dx_type", "sex", "localization"]] == "").all(axis=None)
    assert len(found.masks) == 42
    ingest(data_params(classes), tmp_path / "d")
    images, others = Dataset.open(tmp_path / "d").manifest, Dataset.open(dataset).manifest
    assert list(images["label"]) == list(others["label"])
    assert list(images["pixel_digest"]) == list(others["pixel_digest"])


def test_class_folders_in_an_archive_are_read(source, tmp_path):
    with zipfile.ZipFile(tmp_path / "classes.zip", "w") as made:
        for image_id, label in zip(source.metadata["image_id"], source.metadata["dx"], strict=True):
            made.write(source.image(image_id), f"{label}/{image_id}.jpg")
    assert list(opened(tmp_path / "classes.zip").metadata["dx"]) == list(source.metadata.sort_values("image_id")["dx"])


def test_every_image_of_a_folder_that_is_no_class_is_listed(source, tmp_path):
    for label in ("nv", "wart"):
        (tmp_path / "classes" / label).mkdir(parents=True)
        for image_id in source.ids("nv")[:3]:
            shutil.copy(source.image(image_id), tmp_path / "classes" / label / f"{label}_{image_id}.jpg")
    refused = opened(tmp_path / "classes").refused
    assert list(refused["reason"]) == ["unknown_class"] * 3
    assert "the folder 'wart' is no class; allowed: akiec, bcc" in refused["detail"][0]


def test_masks_of_images_that_are_not_there_are_told(source):
    shutil.copy(source.mask(source.ids("nv")[0]), source.mask("STRANGER"))
    assert list(opened(source).refused["uri"]) == ["masks/STRANGER_segmentation.png"]


def test_two_masks_of_an_image_keep_it_out(source):
    image_id = source.ids("nv")[0]
    shutil.copy(source.mask(image_id), source.path / "images")
    found = opened(source)
    assert list(found.refused["reason"]) == ["duplicate_file"]
    assert image_id not in found.images


# --- links ---


def test_links_of_a_dvc_cache_are_followed(source, dataset, tmp_path):
    """With `cache.type symlink` every file of a tracked folder is a link into the cache, which may lie anywhere."""
    for number, path in enumerate(sorted(source.path.rglob("*.*"))):
        cached = tmp_path / "cache" / "files" / "md5" / f"{number:02x}" / f"{number:030x}"
        cached.parent.mkdir(parents=True)
        path.rename(cached)
        path.symlink_to(cached)
    assert opened(source).refused.empty
    assert content_digest(source.path, tmp_path / "d") == Dataset.open(dataset).content_digest


def test_links_within_the_source_are_followed(source):
    (source.path / "images").rename(source.path / ".kept")
    (source.path / "images").mkdir()
    for path in (source.path / ".kept").iterdir():
        (source.path / "images" / path.name).symlink_to(path)
    assert len(opened(source).images) == 42


def test_a_link_out_of_a_linked_folder_is_refused(source, tmp_path):
    """The folder is the operator's choice; what its files link to is not."""
    (source.path / "images").rename(tmp_path / "disk")
    (source.path / "images").symlink_to(tmp_path / "disk")
    victim = source.ids("nv")[0]
    (tmp_path / "disk" / f"{victim}.jpg").rename(tmp_path / "elsewhere.jpg")
    (tmp_path / "disk" / f"{victim}.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    refused = opened(source).refused
    assert list(refused["reason"]) == ["outside"]
    assert list(refused["image_id"]) == [victim]


def test_a_file_that_turns_into_a_link_after_it_was_listed_is_not_followed(source, tmp_path):
    found, victim = opened(source), source.ids("nv")[0]
    source.image(victim).unlink()
    source.image(victim).symlink_to("/etc/passwd")
    with pytest.raises(folder.RejectedError) as caught:
        found.read(found.images[victim])
    assert caught.value.reason == "outside"


def test_a_file_that_turns_into_a_pipe_or_goes_away_is_not_waited_for(source):
    found, (first, second) = opened(source), source.ids("nv")[:2]
    source.image(first).unlink()
    os.mkfifo(source.image(first))
    source.image(second).unlink()
    for image_id, reason in ((first, "not_a_file"), (second, "missing")):
        with pytest.raises(folder.RejectedError) as caught:
            found.read(found.images[image_id])
        assert caught.value.reason == reason


# --- digests ---


def test_the_digest_follows_names_rows_and_bytes_not_times_or_places(source, tmp_path):
    before = opened(source).digest()
    path = source.image(source.ids("nv")[0])
    os.utime(path, (1, 1))
    (source.path / "notes.md").write_text("of no matter")
    assert opened(source).digest() == before
    shutil.copytree(source.path, tmp_path / "elsewhere" / "source")
    assert opened(tmp_path / "elsewhere" / "source").digest() == before
    data = path.read_bytes()
    path.write_bytes(data[:-3] + b"\0" + data[-2:])
    changed = opened(source).digest()
    path.write_bytes(data)
    assert opened(source).digest() == before
    path.rename(path.with_name("other.jpg"))
    renamed = opened(source).digest()
    path.with_name("other.jpg").rename(path)
    source.set(source.ids("nv")[0], age="7")
    relabelled = opened(source).digest()
    assert len({before, changed, renamed, relabelled}) == 4


def test_the_digest_follows_an_archives_bytes(source, settled):
    zipped(source)
    before = opened(source).digest()
    os.utime(source.path / "HAM10000_images_part_1.zip", (1, 1))
    assert opened(source).digest() == before
    (source.path / "HAM10000_images_part_1.zip").open("ab").close()
    with zipfile.ZipFile(source.path / "HAM10000_images_part_1.zip", "a") as made:
        made.comment = b"another archive"
    assert opened(source).digest() != before


def test_unchanged_files_are_not_read_again(source, settled, monkeypatch):
    before = opened(source).digest()
    read = []
    monkeypatch.setattr(folder.FolderFiles, "_read_file", lambda _, path: read.append(path) or Path(path).read_bytes())
    assert opened(source).digest() == before
    assert [Path(path).name for path in read] == ["source.json", METADATA_FILE]
    victim = source.ids("nv")[0]
    source.image(victim).write_bytes(b"changed")
    read.clear()
    assert opened(source).digest() != before
    assert str(source.image(victim)) in read
    assert len(read) == 3


def test_a_digest_is_known_without_reading_once_it_was_read(source, settled):
    first, victim = opened(source), source.ids("nv")[0]
    assert first.known_digests([first.images[victim]])[0] is None
    first.digest()
    again = opened(source)
    for entry in (*again.images.in_order(), *again.masks.in_order()):
        assert again.known_digests([entry])[0] == bytes_digest((source.path / entry.uri).read_bytes())
    source.image(victim).write_bytes(b"changed")
    changed = opened(source)
    assert changed.known_digests([changed.images[victim]])[0] is None


def test_a_digest_that_core_found_is_remembered(source, settled):
    found = opened(source)
    found.remember((entry, bytes_digest(found.read(entry))) for entry in found.images.in_order())
    again = opened(source)
    assert all(again.known_digests([entry])[0] for entry in again.images.in_order())


def test_a_file_written_within_the_last_two_seconds_is_not_trusted(source):
    """It may be written once more within the same tick of the clock, with the same size: git calls it racily clean."""
    opened(source).digest()
    again = opened(source)
    assert not any(again.known_digests([entry])[0] for entry in again.images.in_order())


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "a folder", "gone"])
def test_a_damaged_cache_costs_time_only(source, settled, tmp_path, damage):
    before = opened(source).digest()
    (path,) = (tmp_path / "home" / "cache" / "fingerprints").iterdir()
    data = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes({"cut": data[:-7], "flipped": data[:100] + bytes([data[100] ^ 1]) + data[101:], "empty": b""}[damage])
    found = opened(source)
    assert not any(found.known_digests([entry])[0] for entry in found.images.in_order())
    assert found.digest() == before


def test_a_cache_that_can_not_be_written_costs_time_only(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    before = opened(source).digest()
    monkeypatch.setenv("DERMAFLOW_HOME", str(tmp_path / "file"))
    assert opened(source).digest() == before


def test_the_cache_forgets_files_that_nobody_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_SPARE", 10)
    sha = bytes_digest(b"x")
    for generation in range(30):
        known = fingerprints.Fingerprints("root")
        entries = [Entry(f"{k}.jpg", 1, f"{generation}") for k in range(10)]
        known.keep([(entry, sha) for entry in entries])
    (path,) = (tmp_path / "home" / "cache" / "fingerprints").iterdir()
    assert path.stat().st_size < 48 * 80
    assert all(fingerprints.Fingerprints("root").known([entry]) == [sha] for entry in entries)


# --- faults that only a second look shows ---


def test_a_damaged_archive_names_itself(source):
    zipped(source)
    path = source.path / "HAM10000_images_part_2.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"HAM10000_images_part_2\.zip is not a whole zip archive"):
        opened(source)


def test_an_entry_that_deflates_well_but_is_small_is_no_bomb(source):
    blank = np.zeros((400, 400), np.uint8)
    with zipfile.ZipFile(source.path / "more.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x.txt", blank.tobytes())
        path = source.image(source.ids("nv")[0])
        made.write(path, path.name)
    path.unlink()
    assert opened(source).refused.empty
