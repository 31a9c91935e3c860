"""Claims: of ten processes that want to start the same run at once one may, in a folder and in a real S3."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time

import pytest

from dermaflow.errors import InputError
from pipelines.claims import Claims
from tests.s3_server import READER
from tests.workspace import ROOT

HOUR, NOTHING = datetime.timedelta(hours=1), datetime.timedelta(0)
KEY = "0123456789abcdef"

# One caller: waits for the moment that all begin at, claims, and "starts a run" by writing a file of its own.
CALLER = """
import datetime, json, sys, time
from pathlib import Path
from pipelines.claims import Claims
place, key, at, out = sys.argv[1:]
claims = Claims(place)
time.sleep(max(0, float(at) - time.time()))
claim, ours = claims.take(key, datetime.timedelta(hours=1))
if ours:
    Path(out).write_text(claim.by)
    claims.started(claim, f"run-of-{claim.by}")
print(json.dumps({"ours": ours, "by": claim.by}))
"""


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return str(tmp_path / "claims")
    s3 = request.getfixturevalue("s3")
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3.make_bucket("claims")
    return f"s3://claims/{tmp_path.name}"


def test_ten_callers_at_once_start_one_run(place, tmp_path):
    at = time.time() + 12  # all ten have imported what they need by then
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", CALLER, place, KEY, str(at), str(tmp_path / f"started-{number}")],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for number in range(10)
    ]  # fmt: skip
    told = [json.loads(caller.communicate()[0]) for caller in callers]
    assert [caller.returncode for caller in callers] == [0] * 10
    (started,) = tmp_path.glob("started-*")
    assert sum(one["ours"] for one in told) == 1
    assert {one["by"] for one in told} == {started.read_text()}, "whoever lost says who was first"
    current = Claims(place).current(KEY)
    assert current.run_id == f"run-of-{started.read_text()}"
    assert current.attempt == 1


def test_a_claim_that_started_a_run_is_kept_for_good(place):
    claims = Claims(place)
    claim, ours = claims.take(KEY, NOTHING)
    assert ours
    assert claims.started(claim, "the-run")
    again, ours = claims.take(KEY, NOTHING)
    assert not ours
    assert again.run_id == "the-run"
    assert not claims.started(claim, "another-run")
    assert claims.current(KEY).run_id == "the-run"


def test_a_claim_whose_maker_died_is_left_alone_for_a_while_and_then_taken_over_once(place):
    claims = Claims(place)
    first, _ = claims.take(KEY, HOUR)
    assert claims.take(KEY, HOUR) == (first, False)
    second, ours = claims.take(KEY, NOTHING)
    assert ours
    assert second.attempt == first.attempt + 1
    assert claims.take(KEY, HOUR) == (second, False)


def test_another_key_is_another_claim(place):
    claims = Claims(place)
    claims.take(KEY, HOUR)
    _, ours = claims.take("fedcba9876543210", HOUR)
    assert ours
    assert claims.current("0" * 16) is None


def test_a_place_that_can_not_be_written_is_told(tmp_path, s3, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"--claims: .*can not"):
        Claims(str(tmp_path / "file")).take(KEY, HOUR)
    s3.make_bucket("images")
    for name, value in s3.environment_of(*READER).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"--claims: s3://images/claims/.* denies access; who writes there needs s3:PutObject"):
        Claims("s3://images/claims").take(KEY, HOUR)
