"""Runs of the whole pipeline on phantoms of which one class carries an artefact, or none does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.workspace import make_workspace, sets

GATE = "explanation_on_lesion"
CLASS = "df"  # whose images get the ruler: few lesions, as in life where an artefact goes with a rare diagnosis


@dataclass(frozen=True)
class Noticed:
    """What a run says of an artefact: whether the gate failed, and with which words; whether the report suspects one."""

    gate: bool
    words: str
    report: bool

    def names(self, diagnosis: str) -> bool:
        """Whether both notice, and name this class."""
        return self.gate and self.report and f"the maps of {diagnosis} for an artefact" in self.words


def run_with(folder: Path, *, ruler: bool, images: int, seed: int, settings: tuple[str, ...]) -> Noticed:
    """Draw phantoms, with a ruler on every image of CLASS where asked; run the pipeline, and read its gate and report."""
    from dermaflow.phantom import draw_phantoms

    workspace = make_workspace(folder)
    draw_phantoms(folder / "data/phantom", images=images, seed=seed, ruler=CLASS if ruler else None, workers=1)
    given = (*settings, "train.architectures=[cnn]", f"train.seed={seed}", "explain.images=100")
    told = workspace.json("run", "--profile", "phantom", *sets(*given))
    gate = next(gate for gate in told["gates"] if gate["name"] == GATE)
    page = Path(told["paths"]["report"]).read_text()
    return Noticed(gate["verdict"] == "fail", gate["reason"], "An artefact is suspected" in page)
