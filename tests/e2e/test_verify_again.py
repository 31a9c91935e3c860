"""`dermaflow verify --replay` and `--rebuild`: answers and whole runs made again are those that were recorded, or a finding."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.register.core import Evidence
from dermaflow.errors import InputError
from pipelines.replay import Again, rebuild, replay
from tests.registries import Registry, make_registry, run_promotion
from tests.versions import copy_project
from tests.workspace import TINY, sets


def made_again(make: Any, made: Registry, version: str, data: Path | None) -> Again:
    told: Again = make(made.client, made.client.get_model_version(*version.split("/")), None if data is None else str(data))
    return told


@pytest.fixture
def source(finished_run: Path) -> Path:
    return finished_run.parent.parent / "data" / "phantom"


@pytest.mark.parametrize("version", ["dermaflow-candidate/1", "dermaflow/1"])
def test_a_model_gives_its_recorded_answers_again(two_champions: Registry, source: Path, version: str):
    told = made_again(replay, two_champions, version, source)
    assert told.findings == []
    images, off = re.fullmatch(r"(\d+) test images answered again, logits off by at most (\S+)", told.says).groups()  # type: ignore[union-attr]
    assert int(images) > 5
    assert float(off) < 1e-4


def test_answers_that_the_model_never_gave_are_found(two_champions: Registry, source: Path):
    (finding,) = made_again(replay, two_champions, "dermaflow-candidate/2", source).findings  # its predictions were made up
    assert (finding.name, finding.where) == ("replay_answers", "dermaflow-candidate/2")
    assert "; the first that differs is of PHI_" in finding.detail


def test_other_images_than_it_was_made_from_are_found(two_champions: Registry, tmp_path: Path):
    from dermaflow.phantom import draw_phantoms

    draw_phantoms(tmp_path / "others", images=21, seed=8, size=(96, 72), workers=1)
    (finding,) = made_again(replay, two_champions, "dermaflow-candidate/1", tmp_path / "others").findings
    assert finding.name == "replay_data"


def test_images_that_are_gone_are_bad_input(two_champions: Registry, tmp_path: Path):
    with pytest.raises(InputError, match="nowhere"):
        made_again(replay, two_champions, "dermaflow-candidate/1", tmp_path / "nowhere")


def test_a_commit_that_is_not_at_hand_is_told(two_champions: Registry, source: Path):
    with pytest.raises(InputError, match=r"dermaflow-candidate/1 was made by commit 0{40}, which .* does not hold"):
        made_again(rebuild, two_champions, "dermaflow-candidate/1", source)


def test_what_no_commit_holds_can_not_be_made_again(
    new_registry: Path, finished_evidence: Evidence, tmp_path: Path, source: Path
):
    made = make_registry(new_registry, tmp_path / "registry")
    dirty = json.dumps({"commit": "0" * 40, "dirty": True})
    run_promotion(made, replace(finished_evidence, commit=dirty), tmp_path)
    (finding,) = made_again(rebuild, made, "dermaflow-candidate/1", source).findings
    assert finding.name == "rebuild_commit"


def test_a_run_is_made_again_from_its_commit_and_comes_to_the_same_bytes(tmp_path: Path):
    from dermaflow.phantom import draw_phantoms

    code = tmp_path / "code"
    copy_project(code)
    identity = [part for name in ("name=Test", "email=test@example.org") for part in ("-c", f"user.{name}")]
    for command in (("init", "--quiet"), ("add", "."), (*identity, "commit", "--quiet", "--message", "start")):
        subprocess.run(["git", *command], cwd=code, check=True)
    draw_phantoms(tmp_path / "phantoms", images=63, seed=7, size=(96, 72), workers=1)

    def dermaflow(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments, "--json"],
            cwd=code, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(code)},
        )  # fmt: skip

    told = (*TINY, "data.source=../phantoms", "train.architectures=[cnn]")
    first = dermaflow("run", "--profile", "phantom", *sets(*told))
    assert first.returncode == 0, first.stderr
    again = dermaflow("verify", "dermaflow-candidate/1", "--replay", "--rebuild")
    assert again.returncode == 0, again.stderr + again.stdout
    says = [made["says"] for made in json.loads(again.stdout)["again"]]
    assert "test images answered again" in says[0]
    assert says[1] == "made again: the same weights"
