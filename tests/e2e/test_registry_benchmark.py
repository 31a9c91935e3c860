"""benchmarks/registry.py at toy size: each contestant says what it should, and all ratios are told. Its bounds are proved."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.test_benchmarks import measured


def test_verify_audit_models_and_the_chain_are_compared_with_what_they_can_not_do_without(finished_run: Path):
    sizes = ("--predictions", "70", "--resamples", "100", "--versions", "8", "--entries", "60", "--rounds", "1")
    told = measured("registry", "--run", str(finished_run), *sizes)
    assert told["ratios"].keys() == {"verify / figures", "audit / figures", "models / mlflow", "chain / files"}
    assert {"seconds, verify", "seconds, audit", "seconds, models", "seconds, chain"} <= told["figures"].keys()
    assert all(peak > 0 for peak in told["peak_anonymous_mib"].values())
