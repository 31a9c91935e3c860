"""A source in S3, on a real server: the same as in a folder, checked on the way, and patient where patience helps."""

from __future__ import annotations

import http.client
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from components.ingest.core import ingest
from components.ingest.decode import RejectedError
from components.ingest.source import Source, open_source
from dermaflow import storage
from dermaflow.artifacts import bytes_digest
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.params import DataParams
from dermaflow.progress import parse
from dermaflow.storage import Bucket, split_uri
from tests.local_server import LocalServer, Quiet, running
from tests.s3_server import LISTER, READER, S3Server, s3_server
from tests.sources import METADATA_FILE, data_params

BUCKET = "images"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DERMAFLOW_HOME", str(tmp_path / "home"))


@pytest.fixture
def as_admin(s3, monkeypatch):
    """The environment of a user who may do everything."""
    speak_with(monkeypatch, s3.environment)


@pytest.fixture(scope="module")
def stored(s3, drawn_source) -> str:
    """The 42 phantoms on the server; not to be changed."""
    s3.make_bucket(BUCKET)
    s3.upload(drawn_source.path, BUCKET, "phantom")
    return f"s3://{BUCKET}/phantom"


@pytest.fixture
def prefix(s3, request) -> str:
    """A place of the test's own."""
    s3.make_bucket(BUCKET)
    return request.node.name.partition("[")[0]


def speak_with(monkeypatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def params(uri: str, **changes: Any) -> DataParams:
    return data_params(uri, **{"patience_seconds": 20.0, **changes})


def opened(uri: str, **changes: Any) -> Source:
    return open_source(params(uri, **changes))


def refusal(uri: str, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(uri, **changes)
    return str(caught.value)


# --- the same as in a folder ---


def test_what_is_stored_is_what_was_uploaded(as_admin, stored, dataset, drawn_source, tmp_path):
    found = opened(stored + "/")
    assert found.refused.empty
    assert len(found.images) == len(found.masks) == 42
    assert found.description["synthetic"]
    assert found.description["dvc_revision"] is None
    first = next(iter(found.images))
    assert found.images[first].uri == f"images/{first}.jpg"
    ingest(params(stored), tmp_path / "d")
    assert Dataset.open(tmp_path / "d").content_digest == Dataset.open(dataset).content_digest


def test_a_user_who_may_only_read_this_bucket_can_ingest(s3, stored, monkeypatch, tmp_path):
    speak_with(monkeypatch, s3.environment_of(*READER))
    ingest(params(stored), tmp_path / "d")
    assert len(Dataset.open(tmp_path / "d").manifest) == 42


def test_class_folders_are_read(as_admin, s3, prefix, source, tmp_path):
    for image_id, label in zip(source.metadata["image_id"], source.metadata["dx"], strict=True):
        (tmp_path / "classes" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(source.image(image_id), tmp_path / "classes" / label)
    s3.upload(tmp_path / "classes", BUCKET, prefix)
    found = opened(f"s3://{BUCKET}/{prefix}")
    assert found.description["layout"] == "class_folders"
    assert list(found.metadata["dx"]) == list(source.metadata.sort_values("image_id")["dx"])


def test_broken_objects_have_the_reasons_of_broken_files(as_admin, s3, prefix, source):
    first, second, third = source.ids("nv")[:3]
    source.image(first).write_bytes(b"")
    source.image(second).unlink()
    source.set(third, dx="wart")
    (source.path / "images" / "part.zip").write_bytes(b"PK")
    (source.path / "images" / "STRANGER.jpg").write_bytes(b"x")
    s3.upload(source.path, BUCKET, prefix)
    found = opened(f"s3://{BUCKET}/{prefix}")
    assert sorted(found.refused["reason"]) == ["empty", "missing", "unknown_class", "unlabelled", "unsupported"]
    assert len(found.images) == 39


def test_more_objects_than_a_page_holds_are_all_listed(as_admin, s3, prefix):
    s3.make_bucket(BUCKET)
    client = s3.client()
    keys = [f"{prefix}/{k:05d}" for k in range(2005)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=BUCKET, Key=key, Body=b"x"), keys))
    assert [item.key for item in Bucket(BUCKET, 5, 4).objects(f"{prefix}/")] == keys


def test_a_prefix_ends_at_its_slash(as_admin, s3, stored):
    s3.client().put_object(Bucket=BUCKET, Key=f"phantom2/{METADATA_FILE}", Body=b"x")
    assert len(opened(stored).images) == 42


def test_a_large_object_of_several_parts_is_read(as_admin, s3, prefix, tmp_path):
    """Its entity tag is no MD5 of it."""
    (tmp_path / "large").write_bytes(bytes(range(256)) * 80_000)
    s3.client().upload_file(str(tmp_path / "large"), BUCKET, f"{prefix}/large")
    bucket = Bucket(BUCKET, 5, 4)
    (item,) = bucket.objects(f"{prefix}/")
    assert "-" in item.etag
    assert bucket.read(item) == (tmp_path / "large").read_bytes()


# --- digests ---


def test_the_digest_follows_content_and_fetches_no_image(s3, prefix, source, monkeypatch):
    with running(Proxy(s3)) as proxy:
        speak_with(monkeypatch, {**s3.environment, "AWS_ENDPOINT_URL": proxy.url})
        s3.upload(source.path, BUCKET, prefix)
        before = opened(f"s3://{BUCKET}/{prefix}").digest()
        assert {Path(path).suffix for path in proxy.fetched} == {".csv", ".json"}
        s3.upload(source.path, BUCKET, prefix)  # again: other times, the same bytes
        assert opened(f"s3://{BUCKET}/{prefix}").digest() == before
        source.image(source.ids("nv")[0]).write_bytes(source.image(source.ids("nv")[1]).read_bytes())
        s3.upload(source.path, BUCKET, prefix)
        assert opened(f"s3://{BUCKET}/{prefix}").digest() != before


def test_what_was_read_once_is_known_until_it_is_written_again(as_admin, s3, prefix, source):
    s3.upload(source.path, BUCKET, prefix)
    found = opened(f"s3://{BUCKET}/{prefix}")
    found.remember((entry, bytes_digest(found.read(entry))) for entry in found.images.in_order())
    again, victim = opened(f"s3://{BUCKET}/{prefix}"), source.ids("nv")[0]
    assert all(again.known_digests([entry])[0] for entry in again.images.in_order())
    s3.client().put_object(Bucket=BUCKET, Key=f"{prefix}/images/{victim}.jpg", Body=b"changed")
    changed = opened(f"s3://{BUCKET}/{prefix}")
    assert changed.known_digests([changed.images[victim]])[0] is None


# --- what changes while it is read ---


@pytest.mark.parametrize(("change", "reason"), [("delete", "missing"), ("write", "changed")])
def test_an_object_that_changes_after_it_was_listed_is_refused(as_admin, s3, prefix, source, change, reason):
    s3.upload(source.path, BUCKET, prefix)
    found, victim = opened(f"s3://{BUCKET}/{prefix}"), source.ids("nv")[0]
    key = f"{prefix}/images/{victim}.jpg"
    if change == "delete":
        s3.client().delete_object(Bucket=BUCKET, Key=key)
    else:
        s3.client().put_object(Bucket=BUCKET, Key=key, Body=source.image(source.ids("nv")[1]).read_bytes())
    with pytest.raises(RejectedError) as caught:
        found.read(found.images[victim])
    assert caught.value.reason == reason


# --- a network and a server that fail for a while ---


class Proxy(LocalServer):
    """Stands between client and server; `fault` may answer a request for an object in the server's place."""

    def __init__(self, server: S3Server) -> None:
        super().__init__(_Forward)
        self.upstream = server.endpoint.removeprefix("http://")
        self.fetched: list[str] = []
        self.fault: Callable[[_Forward, bytes, int], bool] = lambda *_: False


class _Forward(Quiet, BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream)
        upstream.request("GET", self.path, headers=dict(self.headers))  # with the Host that was signed
        answer = upstream.getresponse()
        data, path = answer.read(), self.path.partition("?")[0]
        if path.count("/") > 1 and not path.endswith("/"):
            self.server.fetched.append(path)
            if self.server.fault(self, data, self.server.fetched.count(path)):
                self.close_connection = True
                return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.answer_with(data, len(data))

    def answer_with(self, data: bytes, length: int) -> None:
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)


def etag_of(data: bytes) -> str:
    import hashlib

    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def overloaded(request: _Forward, _: bytes, attempt: int) -> bool:
    if attempt <= 2:
        body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
        request.send_response(503)
        request.answer_with(body, len(body))
    return attempt <= 2


def cut(request: _Forward, data: bytes, attempt: int) -> bool:
    if attempt <= 2:
        request.send_response(200)
        request.send_header("ETag", f'"{etag_of(data)}"')
        request.answer_with(data[: len(data) // 2], len(data))
    return attempt <= 2


def shorter(request: _Forward, data: bytes, attempt: int) -> bool:
    if attempt <= 2:
        request.send_response(200)
        request.answer_with(data[:-1], len(data) - 1)
    return attempt <= 2


def flipped(request: _Forward, data: bytes, attempt: int) -> bool:
    if attempt <= 2:
        request.send_response(200)
        request.send_header("ETag", f'"{etag_of(data)}"')
        request.answer_with(data[:100] + bytes([data[100] ^ 1]) + data[101:], len(data))
    return attempt <= 2


def hung_up(request: _Forward, _: bytes, attempt: int) -> bool:
    return attempt <= 2


def error_page(request: _Forward, _: bytes, attempt: int) -> bool:
    """What a company's proxy says."""
    if attempt <= 2:
        request.send_response(502)
        request.answer_with(b"<html>Bad Gateway", 17)
    return attempt <= 2


@pytest.mark.parametrize("fault", [overloaded, cut, shorter, flipped, hung_up, error_page])
def test_a_fault_on_the_way_is_mended_by_asking_again(s3, stored, drawn_source, monkeypatch, fault):
    with running(Proxy(s3)) as proxy:
        speak_with(monkeypatch, {**s3.environment, "AWS_ENDPOINT_URL": proxy.url})
        proxy.fault = fault
        found = opened(stored)
        for image_id in list(found.images)[:5]:
            assert found.read(found.images[image_id]) == drawn_source.image(image_id).read_bytes()
        assert len(proxy.fetched) == 3 * len(set(proxy.fetched))


@pytest.mark.parametrize("fault", [flipped, shorter])
def test_an_object_that_never_fits_its_checksum_is_refused_not_waited_for(s3, stored, monkeypatch, fault):
    with running(Proxy(s3)) as proxy:
        speak_with(monkeypatch, {**s3.environment, "AWS_ENDPOINT_URL": proxy.url})
        found = opened(stored)
        proxy.fault = lambda request, data, _: fault(request, data, 1)
        with pytest.raises(RejectedError) as caught:
            found.read(next(found.images.in_order()))
        assert caught.value.reason == "checksum"


def test_a_server_that_is_away_for_a_while_is_waited_for(tmp_path, drawn_source, monkeypatch, capsys):
    monkeypatch.setattr(storage, "_TELL_EVERY", 0.5)
    with s3_server(tmp_path / "s3") as server:
        speak_with(monkeypatch, server.environment)
        server.make_bucket(BUCKET)
        server.upload(drawn_source.path, BUCKET, "p")
        found = opened(f"s3://{BUCKET}/p")
        server.stop()
        back = threading.Timer(2, server.start)
        back.start()
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(found.read, found.images.in_order()))
        waited = time.monotonic() - began
        back.join()
    assert read == [(drawn_source.path / entry.uri).read_bytes() for entry in found.images.in_order()]
    told = [event for event in map(parse, capsys.readouterr().err.splitlines()) if event and event["event"] == "waiting"]
    assert 1 <= len(told) <= waited / storage._TELL_EVERY + 1, "eight threads wait, one at a time tells it"
    assert server.endpoint in told[0]["text"]


def test_a_server_that_stays_away_is_told_after_the_patience(tmp_path, drawn_source, monkeypatch):
    with s3_server(tmp_path / "s3") as server:
        speak_with(monkeypatch, server.environment)
        server.make_bucket(BUCKET)
        server.upload(drawn_source.path, BUCKET, "p")
        found = opened(f"s3://{BUCKET}/p", patience_seconds=1.5)
        server.stop()
        began = time.monotonic()
        with pytest.raises(InputError) as caught:
            found.read(next(found.images.in_order()))
        assert 1.4 < time.monotonic() - began < 6
    told = str(caught.value)
    assert f"s3://{BUCKET}/p/images/" in told
    assert f"{server.endpoint} does not answer" in told
    assert "data.patience_seconds is 1.5" in told


# --- what waiting does not mend ---


def test_a_bucket_that_is_not_there_is_named(as_admin):
    assert "s3://no-such-bucket/p/: " in refusal("s3://no-such-bucket/p")
    assert "has no such bucket" in refusal("s3://no-such-bucket/p")


def test_an_empty_prefix_is_told(as_admin, stored):
    assert f"data.source: s3://{BUCKET}/nothing holds no objects; correct the prefix" in refusal(f"s3://{BUCKET}/nothing")


@pytest.mark.parametrize(("key", "secret"), [(READER[0], "wrong"), ("nobody", "wrong")])
def test_wrong_credentials_are_told_at_once(s3, stored, monkeypatch, key, secret):
    speak_with(monkeypatch, s3.environment_of(key, secret))
    began = time.monotonic()
    told = refusal(stored)
    assert "does not accept these credentials" in told
    assert "AWS_ACCESS_KEY_ID" in told
    assert secret not in told
    assert time.monotonic() - began < 5


def test_a_bucket_of_others_is_told_with_the_remedy(s3, stored, monkeypatch):
    s3.make_bucket("of-others")
    speak_with(monkeypatch, s3.environment_of(*READER))
    told = refusal("s3://of-others/phantom")
    assert "s3://of-others/phantom/" in told
    assert "denies access (AccessDenied); allow this user s3:ListBucket" in told


def test_an_object_that_may_not_be_read_stops_with_its_key(s3, stored, monkeypatch):
    speak_with(monkeypatch, s3.environment_of(*LISTER))
    told = refusal(stored)
    assert f"s3://{BUCKET}/phantom/source.json" in told  # the first that is read
    assert "s3:GetObject" in told


def test_no_credentials_are_told(s3, stored, monkeypatch):
    speak_with(monkeypatch, s3.environment)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials; set AWS_ACCESS_KEY_ID" in refusal(stored)


def test_an_endpoint_that_is_none_is_told(stored, s3, monkeypatch):
    speak_with(monkeypatch, {**s3.environment, "AWS_ENDPOINT_URL": "nonsense"})
    assert "AWS_ENDPOINT_URL" in refusal(stored)


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix", "s3://UPPER/x", "s3://a b/x", "s3://../x"])
def test_a_uri_without_a_bucket_is_told(uri):
    with pytest.raises(InputError, match="names no bucket; write s3://bucket/prefix"):
        split_uri(uri)


def test_a_uri_may_name_a_whole_bucket():
    assert split_uri("s3://bucket") == split_uri("s3://bucket/") == ("bucket", "")
    assert split_uri("s3://my.bucket/a/b/") == ("my.bucket", "a/b")


def test_the_endpoint_of_a_profile_is_used(s3, stored, tmp_path, monkeypatch):
    speak_with(monkeypatch, s3.environment)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    (tmp_path / "config").write_text(f"[profile hospital]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "hospital")
    assert len(opened(stored).images) == 42
