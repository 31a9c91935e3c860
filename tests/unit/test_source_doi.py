"""A data set by its DOI, from a server that speaks as Dataverse does: resumed, checked, kept for when there is no network."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from components.ingest import dataverse
from components.ingest.core import ingest
from components.ingest.source import Source, open_source
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.progress import parse
from tests.local_server import LocalServer, Quiet, running
from tests.sources import METADATA_FILE, data_params

DOI = "doi:10.7910/DVN/DBW86T"
PART = "HAM10000_images_part_1.zip"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DERMAFLOW_HOME", str(tmp_path / "home"))


@dataclass
class Published:
    """One file of the data set: what is stored, and what it is converted to where it is a table."""

    name: str
    data: bytes
    converted: bytes | None = None
    algorithm: str = "MD5"

    def listed(self, number: int) -> dict[str, Any]:
        value = hashlib.new(self.algorithm.replace("-", "").lower(), self.data).hexdigest()
        file = {"id": number, "filename": self.name, "contentType": "application/zip", "filesize": len(self.data)}
        file["checksum"] = {"type": self.algorithm, "value": value}
        if self.converted is not None:
            file |= {
                "filename": self.name.replace(".csv", ".tab"),
                "filesize": len(self.converted),
                "originalFileFormat": "text/csv",
                "originalFileSize": len(self.data),
                "originalFileName": self.name,
                "tabularData": True,
            }
        return {"label": file["filename"], "restricted": False, "dataFile": file}


class Dataverse(LocalServer):
    """A repository; it notes what it was asked for, and can fail in the ways that networks and servers do."""

    def __init__(self, files: list[Published]) -> None:
        super().__init__(_Answer)
        self.files = dict(enumerate(files, start=101))
        self.asked: list[tuple[str, str]] = []  # path and Range
        self.cuts = 0  # answers that still end in the middle
        self.overloaded = 0  # requests that still get 503
        self.ranges = True  # whether a part of a file can be asked for
        self.restricted = False
        self.damage = 0  # answers that still come with a wrong byte

    def fetched(self) -> list[str]:
        """Names of the files that were asked for, in order."""
        return [self.files[int(path.rpartition("/")[2])].name for path, _ in self.asked if path.startswith("/storage/")]


class _Answer(Quiet, BaseHTTPRequestHandler):
    server: Dataverse

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.server.asked.append((url.path, self.headers.get("Range", "")))
        if self.server.overloaded:
            self.server.overloaded -= 1
            self.answer(503, b"busy")
        elif url.path == "/api/datasets/:persistentId":
            self.list_files(parse_qs(url.query)["persistentId"][0])
        elif self.server.restricted:
            self.answer(403, b"{}")
        elif url.path.startswith("/api/access/datafile/"):
            converted = self.server.files[int(url.path.rpartition("/")[2])].converted
            if converted is not None and parse_qs(url.query) != {"format": ["original"]}:
                self.answer(200, converted)
            else:
                self.answer(303, b"", Location=url.path.replace("/api/access/datafile", "/storage"))  # as Harvard's does
        else:
            self.send_file(self.server.files[int(url.path.rpartition("/")[2])].data)

    def list_files(self, doi: str) -> None:
        if doi != DOI:
            self.answer(404, b'{"status":"ERROR"}')
        else:
            files = [file.listed(number) for number, file in self.server.files.items()]
            self.answer(200, json.dumps({"status": "OK", "data": {"latestVersion": {"files": files}}}).encode())

    def send_file(self, data: bytes) -> None:
        if self.server.damage:
            self.server.damage -= 1
            data = data[:50] + bytes([data[50] ^ 1]) + data[51:]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.server.ranges else None
        start = int(wanted[1]) if wanted else 0
        if start >= len(data):
            self.answer(416, b"")
            return
        body, cut = data[start:], len(data) // 3 if self.server.cuts else None
        self.server.cuts -= bool(cut)
        told = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if wanted else {}
        self.answer(206 if wanted else 200, body, cut, **told)

    def answer(self, code: int, body: bytes, cut: int | None = None, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body[:cut])
        self.close_connection = cut is not None


@pytest.fixture(scope="module")
def published(drawn_source, tmp_path_factory) -> list[Published]:
    """The phantoms, published as HAM10000 is."""
    folder = tmp_path_factory.mktemp("published")
    images, masks = (sorted((drawn_source.path / name).iterdir()) for name in ("images", "masks"))
    parts = {PART: images[:20], "HAM10000_images_part_2.zip": images[20:], "HAM10000_segmentations_lesion_tschandl.zip": masks}
    files = []
    for name, paths in parts.items():
        with zipfile.ZipFile(folder / name, "w") as made:
            for path in paths:
                made.write(path, path.name)
            made.writestr("README.txt", bytes(600_000))  # so that a third of a file is more than the client reads at a time
        files.append(Published(name, (folder / name).read_bytes()))
    table = (drawn_source.path / METADATA_FILE).read_bytes()
    files.append(Published(METADATA_FILE, table, converted=table.replace(b",", b"\t")))
    files.append(Published("ISIC2018_Task3_Test_GroundTruth.csv", b"a,b\n", converted=b"a\tb\n"))
    files.append(Published("ISIC2018_Task3_Test_Images.zip", b"never to be fetched"))
    return files


@pytest.fixture
def server(published) -> Iterator[Dataverse]:
    with running(Dataverse(list(published))) as server:
        yield server


def opened(server: Dataverse, source: str = DOI, **changes: Any) -> Source:
    return open_source(data_params(source, **{"repository": server.url, "patience_seconds": 5.0, **changes}))


def refusal(server: Dataverse, source: str = DOI, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(server, source, **changes)
    return str(caught.value)


def downloads(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "home" / "cache" / "downloads" / "10.7910_DVN_DBW86T").iterdir()} - {".lock"}


def test_the_published_files_are_fetched_and_read_in_place(server, published, dataset, tmp_path):
    ingest(data_params(DOI, repository=server.url), tmp_path / "d")
    made = Dataset.open(tmp_path / "d")
    before = Dataset.open(dataset)
    assert made.content_digest == before.content_digest
    assert list(made.manifest["has_truth"]) == list(before.manifest["has_truth"])
    assert made.info["source"]["uri"] == DOI
    assert made.info["source"]["name"] == "10.7910/DVN/DBW86T"
    assert made.manifest["source_uri"][0].startswith(f"{PART}/")
    wanted = {file.name for file in published if "Test" not in file.name}
    assert downloads(tmp_path) == {*wanted, "dataverse.json"}


def test_the_table_that_was_uploaded_is_fetched_not_the_converted_one(server, drawn_source, tmp_path):
    """The checksum that Dataverse lists is that of the original."""
    opened(server)
    (path,) = (tmp_path / "home").rglob(METADATA_FILE)
    assert path.read_bytes() == (drawn_source.path / METADATA_FILE).read_bytes()


def test_without_a_network_a_complete_cache_is_enough(published):
    with running(Dataverse(list(published))) as server:
        first = opened(server)
    again = opened(server)  # nobody listens there any more
    assert again.digest() == first.digest()
    assert again.read(next(again.images.in_order())) == first.read(next(first.images.in_order()))


def test_a_complete_cache_asks_for_nothing(server):
    opened(server)
    server.asked.clear()
    opened(server)
    assert server.asked == []


@pytest.mark.parametrize("cuts", [1, 2])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, published, cuts):
    server.cuts = cuts
    assert len(opened(server).images) == 42
    third = len(published[0].data) // 3
    first, *later = [asked for path, asked in server.asked if path == "/storage/101"]
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in later]
    assert first == ""
    assert len(starts) == cuts
    for lost, start in enumerate(starts, start=1):
        assert lost * (third - dataverse._CHUNK) < start <= lost * third


def test_a_server_that_knows_no_parts_starts_again(server, published):
    server.cuts, server.ranges = 1, False
    found = opened(server)
    assert len(found.images) == 42
    assert server.fetched().count(PART) == 2


def test_a_process_that_was_killed_goes_on_where_it_was(server, published, tmp_path):
    folder = tmp_path / "home" / "cache" / "downloads" / "10.7910_DVN_DBW86T"
    folder.mkdir(parents=True)
    (folder / f".{PART}.part").write_bytes(published[0].data[:1000])
    assert len(opened(server).images) == 42
    assert ("/storage/101", "bytes=1000-") in server.asked
    assert ("/storage/101", "") not in server.asked


def test_a_part_of_something_else_is_thrown_away(server, published, tmp_path):
    """It has as many bytes as the file, or more, and others."""
    folder = tmp_path / "home" / "cache" / "downloads" / "10.7910_DVN_DBW86T"
    folder.mkdir(parents=True)
    (folder / f".{PART}.part").write_bytes(bytes(len(published[0].data) + 5))
    assert len(opened(server).images) == 42


def test_an_overloaded_server_is_asked_again(server):
    server.overloaded = 3
    assert len(opened(server).images) == 42


def test_a_wrong_checksum_is_told_and_what_came_is_removed(server, tmp_path):
    server.damage = 1
    told = refusal(server)
    assert f"{server.url}/api/access/datafile/101" in told
    assert f"does not have the checksum that the repository lists for {PART} (md5:" in told
    assert PART not in downloads(tmp_path)
    assert f".{PART}.part" not in downloads(tmp_path)
    assert len(opened(server).images) == 42, "the next run fetches it anew"


def test_a_file_that_was_cut_in_the_cache_is_fetched_anew(server, tmp_path):
    opened(server)
    (path,) = (tmp_path / "home").rglob(PART)
    path.write_bytes(path.read_bytes()[:-100])
    server.asked.clear()
    assert len(opened(server).images) == 42
    assert server.fetched() == [PART]


@pytest.mark.parametrize("algorithm", ["SHA-1", "SHA-256", "SHA-512"])
def test_every_checksum_that_dataverse_knows_is_checked(published, algorithm):
    files = [Published(file.name, file.data, file.converted, algorithm) for file in published]
    with running(Dataverse(files)) as server:
        server.damage = 1
        assert "does not have the checksum" in refusal(server)
        assert len(opened(server).images) == 42


def test_without_a_network_and_a_cache_one_message_says_what_to_do(published, monkeypatch):
    with running(Dataverse(list(published))) as server:
        pass
    told = refusal(server, patience_seconds=0.5)
    assert f"{DOI}: {server.url} does not answer" in told
    assert "data.repository" in told
    assert "data.source" in told


def test_a_doi_that_the_repository_does_not_know_is_told(server):
    told = refusal(server, "doi:10.7910/DVN/NOTHERE")
    assert "is not known there; correct the DOI in data.source, or data.repository" in told


@pytest.mark.parametrize("doi", ["doi:", "doi:HAM10000", "doi:10.7910", "doi:../../etc", "doi:10.7910/DVN/../../x y"])
def test_what_is_no_doi_is_told(server, doi):
    assert "is no DOI; write it as doi:10.7910/DVN/DBW86T" in refusal(server, doi)
    assert server.asked == []


def test_restricted_files_are_told_with_a_way_out(server):
    server.restricted = True
    assert "is restricted (403): get the files with a browser" in refusal(server)


def test_a_repository_that_is_none_is_told(published):
    with running(Dataverse(list(published))) as server:
        told = refusal(server, repository=f"{server.url}/storage/101?")
    assert "data.repository" in told


@pytest.mark.parametrize("name", ["../evil.zip", "/etc/evil.zip", "a b.zip", "-rf.zip", "x\n.zip"])
def test_a_published_name_that_leads_elsewhere_is_refused(published, tmp_path, name):
    with running(Dataverse([*published, Published(name, b"evil")])) as server:
        assert "lists a file named" in refusal(server)
    assert not list(tmp_path.rglob("*evil*"))


def test_a_full_disk_is_told_before_anything_is_fetched(server, monkeypatch):
    monkeypatch.setattr(dataverse.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert "set DERMAFLOW_HOME elsewhere" in refusal(server)
    assert server.fetched() == []


def test_fetching_tells_its_progress(server, capsys):
    opened(server)
    told = [event for event in map(parse, capsys.readouterr().err.splitlines()) if event]
    assert f"fetching {PART} (MB)" in {event["text"] for event in told}


def test_two_processes_at_once_fetch_everything_once(server, published):
    threads = [threading.Thread(target=opened, args=(server,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(server.fetched()) == sorted(file.name for file in published if "Test" not in file.name)
