"""Hostile and broken input: each has its own reason, none crashes or passes silently, and nothing is written elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.ingest.core import ingest
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from tests.sources import METADATA_FILE, SourceFolder, data_params, draw_source

IDS = [f"I{k}" for k in range(6)]
VICTIM = "I2"
ODD = "stray"  # an image id that no row has
MAX_BYTES = 200_000
HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DERMAFLOW_HOME", str(tmp_path / "home"))


@pytest.fixture
def source(tmp_path):
    """Six images in a folder that has nothing else beside it."""
    pictures = {name: np.random.default_rng(k).integers(0, 256, (40, 48, 3), dtype=np.uint8) for k, name in enumerate(IDS)}
    return draw_source(tmp_path / "place" / "source", pictures)


def listing(folder: Path) -> list[str]:
    return sorted(f"{path}" for path in folder.rglob("*"))


# --- what is done to a source ---


def file_of(source: SourceFolder, image_id: str = VICTIM) -> Path:
    return source.path / "images" / f"{image_id}.png"


def cell(column: str, value: str) -> Callable[[SourceFolder], None]:
    """A cell of the victim's row."""
    return lambda source: source.set(VICTIM, **{column: value})


def named(value: str) -> Callable[[SourceFolder], None]:
    """The victim's row has another id, and no file."""

    def do(source: SourceFolder) -> None:
        file_of(source).unlink()
        table = source.metadata
        source.write_metadata(table.assign(image_id=table["image_id"].replace(VICTIM, value)))

    return do


def line(text: str) -> Callable[[SourceFolder], None]:
    """The victim's row as raw text."""

    def do(source: SourceFolder) -> None:
        path = source.path / METADATA_FILE
        rows = path.read_text().splitlines()
        rows[1 + IDS.index(VICTIM)] = text
        path.write_text("\n".join(rows) + "\n")

    return do


def again(**values: str) -> Callable[[SourceFolder], None]:
    """The victim has a second row."""

    def do(source: SourceFolder) -> None:
        table = source.metadata
        source.write_metadata(pd.concat([table, table[table["image_id"] == VICTIM].assign(**values)]))

    return do


def content(data: bytes | Callable[[], bytes], ending: str = ".png") -> Callable[[SourceFolder], None]:
    """The victim's file has other bytes."""

    def do(source: SourceFolder) -> None:
        file_of(source).unlink()
        file_of(source).with_suffix(ending).write_bytes(data if isinstance(data, bytes) else data())

    return do


def instead(make: Callable[[Path, SourceFolder], None]) -> Callable[[SourceFolder], None]:
    """Something else stands where the victim's file was."""

    def do(source: SourceFolder) -> None:
        file_of(source).unlink()
        make(file_of(source), source)

    return do


def beside(name: str | bytes, data: bytes = b"x") -> Callable[[SourceFolder], None]:
    """A further file in the folder of images."""

    def do(source: SourceFolder) -> None:
        folder = os.fsencode(source.path / "images")
        Path(os.fsdecode(folder + b"/" + (name if isinstance(name, bytes) else name.encode()))).write_bytes(data)

    return do


def mask(make: Callable[[Path], object]) -> Callable[[SourceFolder], None]:
    """The victim has a mask."""

    def do(source: SourceFolder) -> None:
        source.mask(VICTIM).parent.mkdir()
        make(source.mask(VICTIM))

    return do


def link_to_secret(path: Path, source: SourceFolder) -> None:
    secret = source.path.parent / "secret.png"
    shutil.copy(file_of(source, "I0"), secret)
    path.symlink_to(secret)


def link_by_steps(path: Path, source: SourceFolder) -> None:
    (source.path / "step").symlink_to("/etc/passwd")
    path.symlink_to("../step")


def deep_folder_outside(source: SourceFolder) -> None:
    (source.path.parent / "elsewhere").mkdir()
    shutil.copy(file_of(source, "I0"), source.path.parent / "elsewhere" / f"{ODD}.png")
    (source.path / "images" / "more").symlink_to(source.path.parent / "elsewhere")


def folder_in_itself(source: SourceFolder) -> None:
    (source.path / "images" / "again").symlink_to(source.path / "images")


def bind_socket(path: Path, _: SourceFolder) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


# --- images ---


def encoded(ending: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, ending, **options)
    return file.getvalue()


def jpeg_with_hole() -> bytes:
    data = encoded("JPEG", quality=90)
    return data[: len(data) // 2] + b"\xff\xd9"


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    frame = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, frame + 5, height, width)
    return bytes(data)


def png_of(width: int, height: int, inflates_to: int = 100) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(inflates_to))) + chunk(b"IEND", b"")


def flipped_bit() -> bytes:
    data = bytearray(encoded("PNG"))
    data[3000] ^= 1
    return bytes(data)


def transparent() -> bytes:
    file = BytesIO()
    Image.new("RGBA", (40, 40), (200, 100, 100, 90)).save(file, "PNG")
    return file.getvalue()


def animated() -> bytes:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    file = BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    return file.getvalue()


# --- archives ---


def archived(
    *names: str, tamper: Callable[[zipfile.ZipFile], None] = lambda _: None, data: bytes | None = None, victim: bool = True
) -> Callable[[SourceFolder], None]:
    """The victim lies in an archive, with entries of further names; `tamper` changes the archive's directory."""

    def do(source: SourceFolder) -> None:
        image = file_of(source).read_bytes()
        file_of(source).unlink()
        with zipfile.ZipFile(source.path / "part.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            if victim:
                archive.writestr(f"{VICTIM}.png", image)
            for name in names:
                archive.writestr(zipfile.ZipInfo(name), image if data is None else data, zipfile.ZIP_DEFLATED)
            tamper(archive)

    return do


def last(archive: zipfile.ZipFile, **values: int) -> None:
    """Change what the directory says of the last entry; its own header stays."""
    for name, value in values.items():
        setattr(archive.filelist[-1], name, value)


def as_link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo(f"{ODD}.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def as_device(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo(f"{ODD}.png")
    info.external_attr = (stat.S_IFCHR | 0o666) << 16
    archive.writestr(info, "x")


def sharing(archive: zipfile.ZipFile) -> None:
    first = archive.filelist[0]
    last(
        archive, header_offset=first.header_offset, compress_size=first.compress_size, file_size=first.file_size, CRC=first.CRC
    )


def spoilt_header(source: SourceFolder) -> None:
    archived()(source)
    path = source.path / "part.zip"
    path.write_bytes(b"XX" + path.read_bytes()[2:])


def spoilt_bytes(source: SourceFolder) -> None:
    archived()(source)
    path = source.path / "part.zip"
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)


def by_class(change: Callable[[Path], None]) -> Callable[[SourceFolder], None]:
    """The source has class folders, the victim in one of them."""

    def do(source: SourceFolder) -> None:
        (source.path / METADATA_FILE).unlink()
        for image_id, label in zip(IDS, ("nv", "mel", "bkl", "df", "vasc", "bcc"), strict=True):
            (source.path / label).mkdir()
            file_of(source, image_id).rename(source.path / label / f"{image_id}.png")
        (source.path / "images").rmdir()
        change(source.path)

    return do


def move(target: str) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        (root / target).parent.mkdir(exist_ok=True)
        (root / "bkl" / f"{VICTIM}.png").rename(root / target)

    return do


# what is done, the reason, and whether the victim has to stay out
CASES: dict[str, tuple[Callable[[SourceFolder], None], str, bool]] = {
    # ids
    "an id that climbs out": (named("../../etc/passwd"), "unsafe_id", True),
    "an absolute id": (named("/etc/passwd"), "unsafe_id", True),
    "an id with a slash": (named("a/b"), "unsafe_id", True),
    "an id with a backslash": (named("a\\b"), "unsafe_id", True),
    "an id of dots": (named(".."), "unsafe_id", True),
    "no id": (named(""), "unsafe_id", True),
    "an id with a bell": (named("a\x07b"), "unsafe_id", True),
    "an id over two lines": (named("a\nb"), "unsafe_id", True),
    "an id with a zero byte": (named("a\x00b"), "unsafe_id", True),
    "an id that turns the line around": (named("I2\u202egnp"), "unsafe_id", True),
    "an id that is a formula": (named("=cmd|' /C calc'!A0"), "unsafe_id", True),
    "an id that is an option": (named("-rf"), "unsafe_id", True),
    "a hidden id": (named(".I2"), "unsafe_id", True),
    "an endless id": (named("x" * 100_000), "unsafe_id", True),
    "a lesion id that climbs out": (cell("lesion_id", "../L"), "unsafe_id", True),
    "a lesion id that is a formula": (cell("lesion_id", "=1+1"), "unsafe_id", True),
    "no lesion id": (cell("lesion_id", ""), "no_lesion_id", True),
    # other cells
    "an unknown class": (cell("dx", "wart"), "unknown_class", True),
    "a class in capitals": (cell("dx", "NV"), "unknown_class", True),
    "no class": (cell("dx", ""), "unknown_class", True),
    "a class that is a formula": (cell("dx", "=HYPERLINK(1)"), "unknown_class", True),
    "a formula": (cell("localization", "=1+1"), "formula", True),
    "a formula with a plus": (cell("localization", "+1+1"), "formula", True),
    "a formula with a minus": (cell("sex", "-1+1"), "formula", True),
    "a formula with an at sign": (cell("dx_type", "@SUM(1)"), "formula", True),
    "a formula behind a tab": (cell("localization", "\t=1+1"), "formula", True),
    "a formula behind a return": (line('L,I2,nv,histo,40,male,"\r=1+1"'), "formula", True),
    "a formula for an age": (cell("age", "=1+1"), "formula", True),
    "an age in words": (cell("age", "old"), "bad_value", True),
    "an infinite age": (cell("age", "inf"), "bad_value", True),
    "an age that is not a number": (cell("age", "nan"), "bad_value", True),
    "an age in other digits": (cell("age", "٤٥"), "bad_value", True),
    "an escape sequence": (cell("localization", "back\x1b[2J"), "bad_value", True),
    "a zero byte in a cell": (cell("sex", "male\x00"), "bad_value", True),
    "an endless cell": (cell("localization", "x" * 150_000), "bad_value", True),
    # rows
    "a cell too many": (line("L,I2,nv,histo,40,male,back,more"), "bad_row", True),
    "cells too few": (line("L,I2"), "bad_row", True),
    "a row twice": (again(), "duplicate_id", True),
    "a row of another class": (again(dx="mel"), "duplicate_id", True),
    # files
    "a missing file": (lambda source: file_of(source).unlink(), "missing", True),
    "a folder for a file": (instead(lambda path, _: path.mkdir()), "not_a_file", True),
    "a named pipe": (instead(lambda path, _: os.mkfifo(path)), "not_a_file", True),
    "a socket": (instead(bind_socket), "not_a_file", True),
    "a link to a device": (instead(lambda path, _: path.symlink_to("/dev/zero")), "outside", True),
    "a link to a password file": (instead(lambda path, _: path.symlink_to("/etc/passwd")), "outside", True),
    "a link to an image outside": (instead(link_to_secret), "outside", True),
    "a link to a link outside": (instead(link_by_steps), "outside", True),
    "a link to nothing": (instead(lambda path, _: path.symlink_to("nowhere.png")), "missing", True),
    "a link to itself": (instead(lambda path, _: path.symlink_to(path.name)), "missing", True),
    "a linked folder outside": (deep_folder_outside, "outside", False),
    "a folder within itself": (folder_in_itself, "duplicate_file", False),
    "two files of a name": (beside(f"{VICTIM}.jpg"), "duplicate_file", True),
    "a file without a row": (beside(f"{ODD}.jpg"), "unlabelled", False),
    "a file name over two lines": (beside("I\n9.jpg"), "unsafe_name", False),
    "a file name that is no UTF-8": (beside(b"I\xff9.jpg"), "unsafe_name", False),
    "a file name that is an option": (beside("-rf.jpg"), "unsafe_name", False),
    "a photograph of a telephone": (beside("I9.HEIC"), "unsupported", False),
    "a DICOM file": (beside("I9.dcm"), "unsupported", False),
    "a packed archive": (beside("more.tar.gz"), "unsupported", False),
    # bytes
    "a file of 0 bytes": (content(b""), "empty", True),
    "a huge file": (content(bytes(MAX_BYTES + 1)), "too_large", True),
    "a web page": (content(b"<html>404 Not Found</html>"), "unsupported", True),
    "a GIF by another name": (content(lambda: encoded("GIF")), "unsupported", True),
    "a JPEG that ends early": (content(lambda: encoded("JPEG", quality=90)[:-2000], ".jpg"), "truncated", True),
    "a JPEG with a hole": (content(jpeg_with_hole, ".jpg"), "damaged", True),
    "a JPEG of 60,000 x 60,000 pixels": (content(lambda: jpeg_of(60_000, 60_000), ".jpg"), "too_large", True),
    "a JPEG for print": (content(lambda: encoded("JPEG", "CMYK"), ".jpg"), "colour_space", True),
    "a PNG that ends early": (content(lambda: encoded("PNG")[:-2000]), "truncated", True),
    "a PNG with a flipped bit": (content(flipped_bit), "damaged", True),
    "a PNG of 60,000 x 60,000 pixels": (content(lambda: png_of(60_000, 60_000)), "too_large", True),
    "a PNG without pixels": (content(lambda: png_of(0, 10)), "unreadable", True),
    "a transparent PNG": (content(transparent), "transparent", True),
    "an animated PNG": (content(animated), "animated", True),
    # masks
    "a mask that is none": (mask(lambda path: path.write_bytes(b"no mask")), "unreadable_mask", True),
    "a mask of 0 bytes": (mask(lambda path: path.write_bytes(b"")), "empty", True),
    "a folder for a mask": (mask(lambda path: path.mkdir()), "not_a_file", True),
    "a mask outside": (mask(lambda path: path.symlink_to("/etc/passwd")), "outside", True),
    # archives
    "an entry that climbs out": (archived(f"../{ODD}.png"), "outside", False),
    "an entry that climbs out later": (archived(f"a/../../{ODD}.png"), "outside", False),
    "an absolute entry": (archived(f"/{ODD}.png"), "outside", False),
    "an entry that climbs out of Windows": (archived(f"..\\{ODD}.png"), "outside", False),
    "an entry on a drive": (archived(f"C:\\{ODD}.png"), "outside", False),
    "an entry that is a link": (archived(tamper=as_link), "outside", False),
    "an entry that is a device": (archived(tamper=as_device), "not_a_file", False),
    "an entry that is a folder": (archived(f"{ODD}.png/"), "not_a_file", False),
    "an entry with a bell": (archived("I\x079.png"), "unsafe_name", False),
    "an entry twice": (archived(f"{VICTIM}.png"), "duplicate_file", True),
    "an entry beside its file": (archived("I1.png"), "duplicate_file", False),
    "a zip bomb": (archived(f"{ODD}.png", data=bytes(20_000_000)), "bomb", False),
    "a bomb that lies of its size": (archived(tamper=lambda archive: last(archive, file_size=3000)), "bomb", True),
    "entries that share bytes": (archived(f"{ODD}.png", tamper=sharing), "bomb", True),
    "an encrypted entry": (archived(tamper=lambda archive: last(archive, flag_bits=1)), "encrypted", True),
    "a rare compression": (archived(tamper=lambda archive: last(archive, compress_type=14)), "unsupported", True),
    "an entry beyond the end": (archived(tamper=lambda archive: last(archive, compress_size=10**6)), "unreadable", True),
    "an entry with another header": (spoilt_header, "unreadable", True),
    "an entry with damaged bytes": (spoilt_bytes, "crc", True),
    "an entry of another checksum": (archived(tamper=lambda archive: last(archive, CRC=1)), "crc", True),
    "an archive of strangers": (archived(ODD, f"{ODD}1.png", f"{ODD}2.png", victim=False), "unlabelled", True),
    # class folders
    "a folder of no class": (by_class(move("wart/I2.png")), "unknown_class", True),
    "an image in no folder": (by_class(move("I2.png")), "unlabelled", True),
    "an image of two classes": (
        by_class(lambda root: shutil.copy(root / "bkl" / "I2.png", root / "nv" / "I2.png")),
        "duplicate_file",
        True,
    ),
}
ALSO = {"an archive of strangers": "missing", "an entry beside its file": "duplicate_file"}  # a second reason that follows


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", CASES)
def test_hostile_or_broken_input_has_its_reason_and_harms_nobody(source, tmp_path, what):
    spoil, reason, stays_out = CASES[what]
    spoil(source)
    out = {VICTIM} if stays_out else {"I1"} if what == "an entry beside its file" else set()
    before = listing(tmp_path)
    ingest(data_params(source.path, max_reject_share=1.0, max_file_bytes=MAX_BYTES), tmp_path / "dataset")
    opened = Dataset.open(tmp_path / "dataset")
    rejects = opened.rejects
    assert reason in set(rejects["reason"])
    assert set(rejects["reason"]) <= {reason, ALSO.get(what, reason)}
    assert set(opened.manifest["image_id"]) == set(IDS) - out
    assert all(rejects["detail"] != "")
    assert rejects.map(str.isprintable).all(axis=None), "a control character would reach a terminal"
    assert not rejects["image_id"].str.match(r"[=+@\-./]").any(), "a tool would take it for a formula or a path"
    outside = [path for path in listing(tmp_path) if not path.startswith((str(tmp_path / "dataset"), str(tmp_path / "home")))]
    assert outside == before


def test_there_are_more_than_forty_of_them():
    assert len(CASES) > 40
    assert len({reason for _, reason, _ in CASES.values()}) > 15


def test_hostile_input_stops_a_run_that_allows_none(source, tmp_path):
    source.set(VICTIM, dx="wart")
    before = listing(tmp_path)
    with pytest.raises(InputError, match="line 4: dx is 'wart'; allowed: akiec, bcc, bkl, df, mel, nv, vasc"):
        ingest(data_params(source.path, max_reject_share=0.01), tmp_path / "dataset")
    assert [path for path in listing(tmp_path) if not path.startswith(str(tmp_path / "home"))] == before


# --- what leaves nothing to work with stops at once ---


def rewritten(data: bytes) -> Callable[[SourceFolder], None]:
    return lambda source: (source.path / METADATA_FILE).write_bytes(data) and None


def cut_archive(source: SourceFolder) -> None:
    archived()(source)
    path = source.path / "part.zip"
    path.write_bytes(path.read_bytes()[:-30])


def metadata_elsewhere(source: SourceFolder) -> None:
    path = source.path / METADATA_FILE
    path.rename(source.path.parent / "elsewhere.csv")
    path.symlink_to(source.path.parent / "elsewhere.csv")


def describe(**said: object) -> Callable[[SourceFolder], None]:
    return lambda source: (source.path / "source.json").write_text(json.dumps(said))


STOPS: dict[str, tuple[Callable[[SourceFolder], None], str]] = {
    "no metadata": (lambda source: (source.path / METADATA_FILE).unlink(), "found: none"),
    "two metadata files": (
        lambda source: (source.path / "my_metadata.tab").write_text("x"),
        f"found: {METADATA_FILE}, my_metadata.tab",
    ),
    "metadata that link elsewhere": (metadata_elsewhere, "outside the source"),
    "empty metadata": (rewritten(b""), "can not be read as a table"),
    "metadata without rows": (rewritten(HEADER.encode()), "has no rows"),
    "metadata in UTF-16": (rewritten(f"{HEADER}\nL,I,nv,histo,4,male,back\n".encode("utf-16")), "save it as UTF-8"),
    "metadata in Latin-1": (rewritten(f"{HEADER}\nL,I,nv,histo,4,male,bäck\n".encode("latin-1")), "line 2 is not UTF-8"),
    "metadata with semicolons": (rewritten(HEADER.replace(",", ";").encode()), "separated by commas or tabs"),
    "metadata without a column": (rewritten(HEADER.replace("dx,", "").encode()), "lacks the column dx;"),
    "metadata with a column twice": (rewritten(f"{HEADER},age\n".encode()), "has the column age more than once"),
    "a quote that is not closed": (rewritten(f'{HEADER}\nL,"I,nv,histo,4,male,back\n'.encode()), "line 2"),
    "metadata that are an image": (rewritten(encoded("PNG")), "can not be read as a table"),
    "an archive that is cut": (cut_archive, "is not a whole zip archive"),
    "an archive that is none": (
        lambda source: (source.path / "part.zip").write_bytes(b"no archive"),
        "is not a whole zip archive",
    ),
    "a description that links elsewhere": (
        lambda source: (source.path / "source.json").symlink_to("/etc/hostname"),
        "outside the source",
    ),
    "a description that is no JSON": (lambda source: (source.path / "source.json").write_text("{"), "is not valid JSON"),
    "a description that is a list": (lambda source: (source.path / "source.json").write_text("[]"), "must be an object"),
    "a description with one class": (
        describe(classes=["nv"]),
        "classes is ['nv']; allowed: tuple should have at least 2 items",
    ),
    "a description with a class twice": (describe(classes=["nv", "nv"]), "allowed: different names, each of letters"),
    "a description with a class that is a path": (
        describe(classes=["nv", "../mel"]),
        "allowed: different names, each of letters",
    ),
    "a description whose classes are a text": (describe(classes="nv, mel"), "classes is 'nv, mel'; allowed: "),
    "a description that is synthetic by a text": (describe(synthetic="false"), "synthetic is 'false'; allowed: "),
    "a description with a balance of its own": (describe(balance={"nv": 3}), "balance.seed is "),
    "no images": (lambda source: shutil.rmtree(source.path / "images"), "holds no images"),
}


@pytest.mark.parametrize("what", STOPS)
def test_a_source_that_can_not_be_used_stops_with_one_message(source, tmp_path, what):
    spoil, told = STOPS[what]
    spoil(source)
    before = listing(tmp_path)
    with pytest.raises(InputError) as caught:
        ingest(data_params(source.path, max_reject_share=1.0), tmp_path / "dataset")
    assert told in str(caught.value)
    assert str(source.path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert [path for path in listing(tmp_path) if not path.startswith(str(tmp_path / "home"))] == before
