"""Artifacts: whole or absent, sealed, and refused with one message when they can not be used."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from dermaflow.artifacts import (
    ARTIFACT_FILE,
    FORMAT_VERSION,
    bytes_digest,
    changed_files,
    file_digest,
    json_digest,
    new_artifact,
    npy_rows_digest,
    open_artifact,
    read_json,
    rows_digest,
    write_json,
)
from dermaflow.errors import InputError


class PowerCutError(Exception):
    """Something that a step does not expect."""


def build(target, text="one", kind="masks", error=None):
    """Build an artifact of two files, or fail after the first."""
    with new_artifact(target, kind) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a.txt").write_text(text)
        if error:
            raise error
        (folder / "b.bin").write_bytes(b"\0\1")
    return open_artifact(target, kind)


def reseal(target, **changes):
    seal = target / ARTIFACT_FILE
    write_json(seal, {**json.loads(seal.read_text()), **changes})


def test_an_artifact_names_its_kind_and_the_digest_of_each_file(tmp_path):
    artifact = build(tmp_path / "a")
    assert artifact.kind == "masks"
    assert artifact.files == {"b.bin": bytes_digest(b"\0\1"), "part/a.txt": bytes_digest(b"one")}
    assert artifact.digest == json_digest(artifact.files)
    assert changed_files(artifact) == []


def test_the_same_content_has_the_same_digest_wherever_it_lies(tmp_path):
    assert build(tmp_path / "a").digest == build(tmp_path / "deep" / "er" / "b").digest
    assert build(tmp_path / "a").digest != build(tmp_path / "c", text="two").digest


def test_nothing_is_at_the_target_before_the_end(tmp_path):
    with new_artifact(tmp_path / "a", "masks") as folder:
        (folder / "half.txt").write_text("half")
        assert not (tmp_path / "a").exists()
        assert folder.parent == tmp_path, "another file system would make the rename a copy"
    assert (tmp_path / "a" / "half.txt").read_text() == "half"


@pytest.mark.parametrize("error", [PowerCutError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_the_work_fails(tmp_path, error):
    with pytest.raises(error):
        build(tmp_path / "a", error=error)
    assert list(tmp_path.iterdir()) == []


def test_the_old_artifact_survives_a_rebuild_that_fails(tmp_path):
    before = build(tmp_path / "a")
    with pytest.raises(PowerCutError):
        build(tmp_path / "a", text="two", error=PowerCutError)
    assert open_artifact(tmp_path / "a", "masks") == before
    assert changed_files(before) == []
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_rebuild_replaces_the_old_artifact_and_leaves_nothing_of_it(tmp_path):
    build(tmp_path / "a")
    with new_artifact(tmp_path / "a", "masks") as folder:
        (folder / "c.txt").write_text("c")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [ARTIFACT_FILE, "c.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_other_users_of_a_shared_volume_can_read_an_artifact(tmp_path):
    build(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755
    assert (tmp_path / "a" / ARTIFACT_FILE).stat().st_mode & stat.S_IROTH


def test_a_folder_that_was_never_an_artifact_is_not_deleted(tmp_path):
    """`dermaflow validate DATA --out FOLDER` with a folder of one's own must not cost its content."""
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.txt").write_text("three years of work")
    with pytest.raises(InputError, match="thesis"):
        build(mine)
    assert (mine / "chapter.txt").read_text() == "three years of work"


def test_a_file_at_the_target_is_not_deleted(tmp_path):
    mine = tmp_path / "thesis.txt"
    mine.write_text("three years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        build(mine)
    assert mine.read_text() == "three years of work"


def test_an_empty_folder_may_become_an_artifact(tmp_path):
    (tmp_path / "a").mkdir()
    assert build(tmp_path / "a").kind == "masks"


def test_the_working_folder_itself_is_refused_as_a_target(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError):
        build(Path())
    assert list(Path().iterdir()) == []


def test_the_seal_shows_a_changed_and_a_missing_file(tmp_path):
    artifact = build(tmp_path / "a")
    (artifact.path / "part" / "a.txt").write_text("0ne")
    assert changed_files(artifact) == ["part/a.txt"]
    (artifact.path / "b.bin").unlink()
    assert changed_files(artifact) == ["b.bin", "part/a.txt"]


def test_the_seal_shows_a_file_that_was_put_in_later(tmp_path):
    artifact = build(tmp_path / "a")
    (artifact.path / "mask-00001.npy").write_bytes(b"read by a glob")
    assert changed_files(artifact) == ["mask-00001.npy"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),  # a pixel
        lambda data: data[:-12],  # a row
        lambda data: data + bytes(5),
        lambda data: data.replace(b"(3, 2, 2, 3)", b"(2, 3, 2, 3)"),
        lambda data: b"not an array",
        lambda data: b"",
    ],
)
def test_the_seal_of_rows_shows_each_change_of_an_array(tmp_path, spoil):
    images = np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3)
    np.save(tmp_path / "images.npy", images)
    header = (tmp_path / "images.npy").read_bytes()[: -images.nbytes]
    sealed = rows_digest(header, [bytes_digest(image.tobytes()) for image in images])
    assert sealed == npy_rows_digest(tmp_path / "images.npy")
    with new_artifact(tmp_path / "a", "masks", {"images.npy": sealed}) as folder:
        np.save(folder / "images.npy", images)
    artifact = open_artifact(tmp_path / "a", "masks")
    assert changed_files(artifact) == []
    (artifact.path / "images.npy").write_bytes(spoil((artifact.path / "images.npy").read_bytes()))
    assert changed_files(artifact) == ["images.npy"]


def test_the_seal_shows_that_it_was_written_over_itself(tmp_path):
    artifact = build(tmp_path / "a")
    (artifact.path / "b.bin").write_bytes(b"forged")
    reseal(artifact.path, files={**artifact.files, "b.bin": bytes_digest(b"forged")})
    assert changed_files(open_artifact(artifact.path, "masks"))


def test_a_folder_without_a_seal_is_not_an_artifact(tmp_path):
    build(tmp_path / "a")
    (tmp_path / "a" / ARTIFACT_FILE).unlink()
    with pytest.raises(InputError, match=r"is not a finished masks artifact .* run the step that writes it"):
        open_artifact(tmp_path / "a", "masks")
    with pytest.raises(InputError, match="is not a finished masks artifact"):
        open_artifact(tmp_path / "nowhere", "masks")


def test_an_artifact_of_another_kind_is_refused(tmp_path):
    build(tmp_path / "a")
    with pytest.raises(InputError, match="kind 'masks'; expected 'splits'"):
        open_artifact(tmp_path / "a", "splits")


def test_an_artifact_of_a_newer_dermaflow_says_what_to_do(tmp_path):
    build(tmp_path / "a")
    reseal(tmp_path / "a", format=FORMAT_VERSION + 1)
    with pytest.raises(InputError, match=rf"format {FORMAT_VERSION + 1}, this Dermaflow reads up to {FORMAT_VERSION}; use the"):
        open_artifact(tmp_path / "a", "masks")


@pytest.mark.parametrize("text", ["{", ""])
def test_a_seal_that_is_not_json_is_refused_by_name(tmp_path, text):
    build(tmp_path / "a")
    (tmp_path / "a" / ARTIFACT_FILE).write_text(text)
    with pytest.raises(InputError, match=rf"{ARTIFACT_FILE} is not valid JSON"):
        open_artifact(tmp_path / "a", "masks")


@pytest.mark.parametrize("text", ["[]", '{"kind": "masks", "format": 1}'])
def test_a_seal_that_says_something_else_is_refused(tmp_path, text):
    build(tmp_path / "a")
    (tmp_path / "a" / ARTIFACT_FILE).write_text(text)
    with pytest.raises(InputError):
        open_artifact(tmp_path / "a", "masks")


def test_a_place_that_can_not_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for target in (tmp_path / "file" / "a", tmp_path / "file" / "deeper" / "a"):
        with pytest.raises(InputError, match=r"can not write to .*file.*; choose a folder you may write to"):
            build(target)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_told(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="can not write to"):
        build(tmp_path / "a")
    tmp_path.chmod(0o755)


def test_a_digest_of_json_does_not_depend_on_the_order_of_keys():
    assert json_digest({"a": 1, "b": [1, 2]}) == json_digest({"b": [1, 2], "a": 1})
    assert json_digest({"a": [1, 2]}) != json_digest({"a": [2, 1]})


def test_digests_are_those_of_sha256sum(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "abc") == bytes_digest(b"abc") == expected
    (tmp_path / "large").write_bytes(b"x" * (3 << 20))
    assert file_digest(tmp_path / "large") == bytes_digest(b"x" * (3 << 20))


def test_json_is_read_back_and_a_missing_file_is_named(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": [1, None], "ä": "ö"})
    assert read_json(tmp_path / "new" / "a.json") == {"b": [1, None], "ä": "ö"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    with pytest.raises(InputError, match=r"gone\.json does not exist"):
        read_json(tmp_path / "gone.json")


def test_a_value_that_json_does_not_know_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"metric": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"metric": float("nan")})
    assert read_json(tmp_path / "a.json") == {"metric": 0.5}


def test_a_failed_write_of_json_leaves_no_litter(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"metric": float("nan")})
    assert list(tmp_path.iterdir()) == []
