"""The ledger: one chain whoever writes, and nothing edited, taken out, put elsewhere or cut off goes unseen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dermaflow.artifacts import json_digest
from dermaflow.errors import InputError
from dermaflow.ledger import EMPTY, KINDS, Head, Ledger, LedgerError, head_of, ledger_of, read_anchor, unanchored, write_anchor
from tests.s3_server import S3Server
from tests.workspace import ROOT

WRITERS, EACH = 16, 3


@pytest.fixture(params=["folder", "s3", "s3 with versions"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a ledger may lie; nothing is there yet."""
    if request.param == "folder":
        yield str(tmp_path / "registry" / "ledger")
        return
    server: S3Server = request.getfixturevalue("s3")
    bucket = "versioned" if "versions" in request.param else "ledgers"
    server.make_bucket(bucket)
    if bucket == "versioned":
        server.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield f"s3://{bucket}/{tmp_path.name}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger of five entries in a folder."""
    written(Ledger(str(tmp_path / "ledger")), 5)
    return tmp_path / "ledger"


def written(ledger: Ledger, count: int) -> Ledger:
    for number in range(count):
        ledger.append("evaluation", {"test_set": f"sha256:{number}"}, actor="ci")
    return ledger


def faults(folder: Path) -> list[tuple[int, str]]:
    return [(fault.number, fault.name) for fault in Ledger(str(folder)).look()[1]]


def entry_file(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.json"


def edit(path: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool = False) -> None:
    """Change an entry, as whoever may write the folder could; `sealed`: with a digest that fits."""
    value = json.loads(path.read_text())
    change(value)
    if sealed:
        value["digest"] = json_digest({name: item for name, item in value.items() if name != "digest"})
    path.unlink()
    path.write_text(json.dumps(value))


def test_entries_follow_each_other_and_say_who_did_what_when(place: str):
    ledger = Ledger(place)
    assert ledger.head() == EMPTY
    first = ledger.append("registration", {"version": 1, "share": 0.1}, actor="ci")
    second = Ledger(place).append("decision", {"outcome": "refused"})
    entries = Ledger(place).entries()
    assert entries == [first, second]
    assert [entry.number for entry in entries] == [1, 2]
    assert (first.kind, first.actor, first.body) == ("registration", "ci", {"version": 1, "share": 0.1})
    assert second.previous == first.digest
    assert second.digest == json_digest({name: value for name, value in second.to_dict().items() if name != "digest"})
    assert first.at.endswith("+00:00")
    assert first.at < second.at
    assert ledger.head() == Head(2, second.digest), "what another wrote is seen"


def test_an_entry_that_is_known_already_stands_for_a_second(place: str):
    ledger = Ledger(place)

    def same(entries: Any) -> Any:
        return next((entry for entry in entries if entry.body["key"] == "a"), None)

    first = ledger.append("registration", {"key": "a"}, unless=same)
    assert Ledger(place).append("registration", {"key": "a"}, unless=same) == first
    assert len(ledger.entries()) == 1


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


WRITE = """
import pathlib, sys, time
from dermaflow.ledger import Ledger
place, name, each, barrier = sys.argv[1], sys.argv[2], int(sys.argv[3]), pathlib.Path(sys.argv[4])
ledger = Ledger(place)
ledger.entries()
(barrier / name).touch()
while not (barrier / "go").exists():
    time.sleep(0.002)
for number in range(each):
    print(ledger.append("decision", {"number": number}, actor=name).number)
"""


def test_simultaneous_writers_give_one_chain_and_lose_nothing(place: str, tmp_path: Path):
    barrier = tmp_path / "barrier"
    barrier.mkdir()
    names = [f"writer-{number:02d}" for number in range(WRITERS)]
    processes = [python(WRITE, place, name, str(EACH), str(barrier)) for name in names]
    deadline = time.monotonic() + 120
    while len(list(barrier.iterdir())) < WRITERS and time.monotonic() < deadline:
        time.sleep(0.02)
    (barrier / "go").touch()
    told = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        told += [int(line) for line in out.split()]
    entries, found = Ledger(place).look()
    assert found == []
    assert sorted(told) == list(range(1, WRITERS * EACH + 1)), "a writer was told of an entry that is not its own"
    assert sorted((entry.actor, entry.body["number"]) for entry in entries) == [(n, i) for n in names for i in range(EACH)]


KILLED = """
import os, signal, sys
from dermaflow.ledger import Ledger
place, at, before = sys.argv[1], sys.argv[2], sys.argv[3] == "before"
real = getattr(os, at)
def dying(*arguments, **options):
    if before:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
ledger = Ledger(place)
ledger.entries()
setattr(os, at, dying)
ledger.append("promotion", {"to": 1}, actor="killed")
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("at", ["fsync", "link"])
def test_a_killed_writer_leaves_a_whole_entry_or_none(folder: Path, at: str, moment: str):
    process = python(KILLED, str(folder), at, moment)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    entries, found = Ledger(str(folder)).look()
    assert found == []
    assert len(entries) == (6 if (at, moment) == ("link", "after") else 5)
    assert Ledger(str(folder)).append("decision", {}).number == len(entries) + 1


def test_writers_that_are_killed_at_any_time_leave_a_chain(tmp_path: Path):
    place, barrier = str(tmp_path / "ledger"), tmp_path / "barrier"
    barrier.mkdir()
    (barrier / "go").touch()
    for number in range(6):
        process = python(WRITE, place, f"w{number}", "100000", str(barrier))
        while not (barrier / f"w{number}").exists():
            time.sleep(0.005)
        time.sleep(0.03 + 0.017 * number)
        process.kill()
        process.communicate()
        assert Ledger(place).look()[1] == []
    assert len(Ledger(place).entries()) > 6


def test_what_killed_writers_left_is_removed_in_time(folder: Path):
    left, fresh = folder / ".00000006.json.0011223344556677", folder / ".00000006.json.8899aabbccddeeff"
    for path in (left, fresh):
        path.write_text("{")
    os.utime(left, (0, 0))
    Ledger(str(folder)).append("decision", {})
    assert (left.exists(), fresh.exists()) == (False, True)


def test_an_untouched_ledger_has_no_fault(folder: Path):
    assert faults(folder) == []


def test_an_edited_entry_is_found(folder: Path):
    edit(entry_file(folder, 3), lambda value: value["body"].update(test_set="sha256:other"))
    assert faults(folder) == [(3, "edited")]


@pytest.mark.parametrize("field", ["actor", "at", "kind", "previous", "nonce"])
def test_no_field_can_be_edited(folder: Path, field: str):
    edit(entry_file(folder, 3), lambda value: value.update({field: "other"}))
    assert (3, "edited") in faults(folder)


def test_an_edited_entry_with_a_digest_that_fits_is_found_by_the_next(folder: Path):
    edit(entry_file(folder, 3), lambda value: value["body"].update(test_set="sha256:other"), sealed=True)
    assert faults(folder) == [(4, "broken")]


def test_a_removed_entry_is_found(folder: Path):
    entry_file(folder, 2).unlink()
    assert faults(folder) == [(2, "missing")]
    entry_file(folder, 1).unlink()
    assert faults(folder) == [(1, "missing"), (2, "missing")]


def test_entries_that_changed_places_are_found(folder: Path):
    third, fourth = entry_file(folder, 3), entry_file(folder, 4)
    third.rename(folder / "aside")
    fourth.rename(third)
    (folder / "aside").rename(fourth)
    assert {(3, "moved"), (4, "moved")} <= set(faults(folder))


def test_reordered_entries_with_numbers_and_digests_that_fit_are_found(folder: Path):
    third, fourth = entry_file(folder, 3).read_text(), entry_file(folder, 4).read_text()
    for number, text in ((3, fourth), (4, third)):
        entry_file(folder, number).unlink()
        entry_file(folder, number).write_text(text)
        edit(entry_file(folder, number), lambda value, number=number: value.update(number=number), sealed=True)
    assert {(3, "broken"), (4, "broken"), (5, "broken")} == set(faults(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"number": 3}', "\x00"])
def test_an_entry_that_is_none_is_found(folder: Path, text: str):
    entry_file(folder, 3).unlink()
    entry_file(folder, 3).write_text(text)
    assert (3, "damaged") in faults(folder)


def test_an_entry_with_a_field_more_is_found(folder: Path):
    edit(entry_file(folder, 3), lambda value: value.update(more=1), sealed=True)
    assert (3, "damaged") in faults(folder)


def test_a_broken_ledger_is_neither_read_nor_written(folder: Path):
    edit(entry_file(folder, 3), lambda value: value.update(actor="other"))
    with pytest.raises(LedgerError, match=r"does not hold at entry 3: .* it was edited\. Nothing was written"):
        Ledger(str(folder)).append("decision", {})
    assert len(list(folder.iterdir())) == 5


def test_a_ledger_that_was_cut_off_behind_an_anchor_is_found(folder: Path, tmp_path: Path):
    head = write_anchor(tmp_path / "anchor.json", Ledger(str(folder)))
    assert head == read_anchor(tmp_path / "anchor.json") == Ledger(str(folder)).head()
    ledger = Ledger(str(folder))
    ledger.append("decision", {})
    assert unanchored(ledger.entries(), head) is None, "a ledger may grow"
    for number in (5, 6):
        entry_file(folder, number).unlink()
    entries, found = Ledger(str(folder)).look()
    assert found == [], "the chain alone does not tell"
    assert unanchored(entries, head) == "the anchor knows entry 5, but the ledger ends with 4: its end was cut off"
    with pytest.raises(LedgerError, match="stays as it is: the anchor knows entry 5"):
        write_anchor(tmp_path / "anchor.json", Ledger(str(folder)))


def test_a_ledger_that_was_written_anew_is_found_by_its_anchor(folder: Path, tmp_path: Path):
    head = write_anchor(tmp_path / "anchor.json", Ledger(str(folder)))
    again = written(Ledger(str(tmp_path / "again")), 7)
    assert again.look()[1] == []
    assert "written anew" in str(unanchored(again.entries(), head))


def test_who_holds_a_ledger_open_sees_that_its_end_was_cut_off(folder: Path):
    ledger = Ledger(str(folder))
    ledger.entries()
    entry_file(folder, 4).unlink()
    entry_file(folder, 5).unlink()
    with pytest.raises(LedgerError, match="at entry 4"):
        ledger.append("decision", {})


def test_an_empty_ledger_can_be_anchored(tmp_path: Path):
    ledger = Ledger(str(tmp_path / "ledger"))
    assert write_anchor(tmp_path / "anchor.json", ledger) == EMPTY
    assert unanchored(written(ledger, 2).entries(), read_anchor(tmp_path / "anchor.json")) is None


@pytest.mark.parametrize("text", ["[]", '{"format": 1}', '{"format": 9, "number": 1, "digest": "x"}'])
def test_a_file_that_is_no_anchor_is_refused(tmp_path: Path, text: str):
    (tmp_path / "anchor.json").write_text(text)
    with pytest.raises(InputError, match="is not an anchor"):
        read_anchor(tmp_path / "anchor.json")


def test_what_a_newer_dermaflow_wrote_is_not_called_damaged(folder: Path):
    edit(entry_file(folder, 5), lambda value: value.update(format=2), sealed=True)
    with pytest.raises(InputError, match="format 2; this Dermaflow reads up to 1"):
        Ledger(str(folder)).look()


def test_what_is_laid_over_an_entry_in_a_bucket_with_versions_does_not_count(s3: S3Server, monkeypatch: pytest.MonkeyPatch):
    client = s3.client()
    s3.make_bucket("laid-over")
    client.put_bucket_versioning(Bucket="laid-over", VersioningConfiguration={"Status": "Enabled"})
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    ledger = written(Ledger("s3://laid-over/ledger"), 4)
    entries = ledger.entries()
    client.put_object(Bucket="laid-over", Key="ledger/00000002.json", Body=b"{}")
    client.delete_object(Bucket="laid-over", Key="ledger/00000003.json")
    client.delete_object(Bucket="laid-over", Key="ledger/00000004.json")
    assert Ledger("s3://laid-over/ledger").look() == (entries, [])
    assert Ledger("s3://laid-over/ledger").append("decision", {}).number == 5
    assert ledger.head().number == 5


def test_a_number_that_was_marked_as_deleted_can_not_be_taken_again(s3: S3Server, monkeypatch: pytest.MonkeyPatch):
    """A writer that has not seen the entry yet would find its number free."""
    client = s3.client()
    s3.make_bucket("taken")
    client.put_bucket_versioning(Bucket="taken", VersioningConfiguration={"Status": "Enabled"})
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    ledger = written(Ledger("s3://taken/ledger"), 2)
    client.delete_object(Bucket="taken", Key="ledger/00000002.json")
    assert ledger._store.create("00000002.json", b"another") is False
    assert Ledger("s3://taken/ledger").entries() == ledger.entries()


def test_ten_thousand_entries_are_checked_in_seconds(tmp_path: Path):
    from dermaflow import ledger as module

    folder, head = tmp_path / "ledger", EMPTY
    folder.mkdir()
    for _ in range(10_000):
        entry = module._entry(
            head, "decision", {"outcome": "refused", "gates": [{"name": "auroc", "estimate": 0.5}]}, "ci", "0"
        )
        entry_file(folder, entry.number).write_bytes(module._bytes(entry))
        head = head_of([entry])
    began = time.monotonic()
    entries, found = Ledger(str(folder)).look()
    assert (len(entries), found) == (10_000, [])
    assert time.monotonic() - began < 5  # 0.6 s on a free machine


def test_the_ledger_of_an_embedded_registry_lies_beside_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert ledger_of(f"sqlite:///{tmp_path}/mlflow.db").place == str(tmp_path / "ledger")
    monkeypatch.chdir(tmp_path)
    assert ledger_of("sqlite:///.dermaflow/mlflow.db").place == str(tmp_path / ".dermaflow" / "ledger")


def test_a_server_needs_to_be_told_where_its_ledger_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DERMAFLOW_LEDGER", raising=False)
    with pytest.raises(InputError, match=r"DERMAFLOW_LEDGER: http://localhost:5000 is a server.*s3://bucket/prefix"):
        ledger_of("http://localhost:5000")
    monkeypatch.setenv("DERMAFLOW_LEDGER", str(tmp_path))
    assert ledger_of("http://localhost:5000").place == str(tmp_path)
    beside = ledger_of(f"sqlite:///{tmp_path}/other/mlflow.db").place
    assert beside == str(tmp_path / "other" / "ledger"), "an embedded registry has its own, whatever the variable says"


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"ledger: can not write|can not be read"):
        Ledger(str(tmp_path / "file" / "ledger")).append("decision", {})


def test_every_kind_can_be_written(tmp_path: Path):
    ledger = Ledger(str(tmp_path / "ledger"))
    for kind in KINDS:
        ledger.append(kind, {})  # type: ignore[arg-type]
    assert [entry.kind for entry in ledger.entries()] == list(KINDS)
