"""Benchmarks at toy size: they run, compare equal work, and print one JSON object. Their bounds are proved, not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.workspace import ROOT


def measured(name: str, *arguments: str) -> dict[str, Any]:
    """What `benchmarks/NAME.py --json` prints; on a busy machine a bound may be missed, which is exit code 1."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert all(value > 0 for value in told["ratios"].values())
    assert bool(told["missed"]) == bool(done.returncode)
    return told


def test_ingest_is_compared_with_its_baselines(phantoms: Path):
    told = measured("ingest", "--source", str(phantoms / "images"), "--images", "40", "--repeats", "1")
    assert {"ingest / newcomer", "ingest / keras", "ingest / bound"} <= told["ratios"].keys()
    assert set(told["peak_anonymous_mib"]) == {"newcomer", "keras", "bound", "ingest"}


def test_growth_writes_and_pushes_only_what_is_new(phantoms: Path):
    told = measured("incremental", "--source", str(phantoms), "--base", "120", "--push")
    assert told["new_array_files"] == ["shard-00001.npy", "signature-00001.npy"]
    assert told["rewritten_array_files"] == []
    assert told["pushed_bytes"]["growth"] < told["new_array_bytes"] + 1_000_000


def test_segmentation_is_compared_with_the_plain_recipe(phantoms: Path):
    told = measured("segment", "--source", str(phantoms), "--plain", "4")
    assert told["halves"]["all"]["images"] == 84
    assert told["halves"]["tuned half"]["images"] + told["halves"]["untouched half"]["images"] == 84
    assert 0.5 < told["figures"]["mean Dice, untouched half"] <= 1


def test_the_step_with_augmentation_is_compared_with_the_step_without():
    told = measured("augment", "--images", "96", "--size", "64", "--rounds", "1")
    assert set(told["milliseconds_a_step"]) == set(told["peak_anonymous_mib"]) == {"plain", "augmented"}


def test_the_training_step_is_compared_with_a_bare_keras_fit():
    small = ("--architectures", "cnn", "--images", "96", "--size", "64", "--epochs", "3", "--minutes", "0")
    told = measured("train", *small)
    assert set(told["images_per_second"]) == set(told["peak_anonymous_mib"]) == {"cnn, ours", "cnn, keras"}


def test_an_evaluations_figures_are_those_of_a_plain_loop_over_the_resamples():
    told = measured("evaluate", "--images", "120", "--resamples", "100", "--plain", "3", "--rounds", "1")
    assert told["figures"]["largest difference"] <= 1e-9
    assert told["figures_with_intervals"] > 80
    assert told["plain"]["resamples_measured"] == 3
    assert set(told["peak_anonymous_mib"]) == {"test alone", "both sides", "plain"}


def test_attributions_are_compared_with_expected_gradients(phantoms: Path):
    told = measured("explain", "--source", str(phantoms), "--architecture", "cnn", "--size", "64", "--images", "2")
    assert told["images"] == 2
    assert told["median_additivity_error"]["ours"] < 1e-3
    assert set(told["peak_anonymous_mib"]) == {"ours", "gradient"}
