"""Issue 6, line 4: an artefact that a class was learned by is noticed, and none where there is none."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.planted import CLASS, Noticed, run_with

BOUND = (
    "with the planted artefact (400 phantoms, 5 epochs) the report and the gate both notice in 5 of 5 seeds; without it, no "
    "false alarm in 5 of 5"
)
SEEDS, IMAGES = range(1, 6), 400
SETTINGS = ("train.epochs=5", "train.batch_size=8")  # 200 steps: the ruler is learned


def prove() -> tuple[str, bool]:
    """Ten runs of the whole pipeline."""
    with tempfile.TemporaryDirectory(prefix="dermaflow-proof-") as scratch:

        def runs(*, ruler: bool) -> list[Noticed]:
            places = ((seed, Path(scratch) / f"{seed}-{'ruler' if ruler else 'plain'}") for seed in SEEDS)
            return [run_with(place, ruler=ruler, images=IMAGES, seed=seed, settings=SETTINGS) for seed, place in places]

        planted, plain = runs(ruler=True), runs(ruler=False)
    noticed = sum(found.names(CLASS) for found in planted)
    alarms = sum(found.gate or found.report for found in plain)
    words = "; ".join(found.words for found in planted)
    told = f"noticed by report and gate in {noticed} of {len(SEEDS)}, false alarms in {alarms} of {len(SEEDS)}: {words}"
    return told, noticed == len(SEEDS) and alarms == 0
