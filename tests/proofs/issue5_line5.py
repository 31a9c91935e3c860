"""Issue 5, line 5: the study's own protocol trained and judged beside ours, on the same images.

`python -m tests.proofs.issue5_line5` prints the table of docs/results.md from what the proof keeps in EVIDENCE: figures of the
test parts, no images and no weights. A profile is a proof's work of an hour or more, and one that is interrupted goes on with
the steps that its run has not finished; when both are kept for this code, nothing is trained.
"""

from __future__ import annotations

from typing import Any

from dermaflow.artifacts import read_json
from dermaflow.params import load_params
from dermaflow.wording import in_words
from tests.proofs.clone import SHARED, imagenet_weights
from tests.proofs.measuring import keep_evidence, place_of, stands
from tests.proofs.prove import ROOT
from tests.workspace import Workspace, make_workspace, sets

BOUND = (
    "the paper profile trains and evaluates, on the materialised 8-class set: the CNN at least 10 epochs, ResNet50 and "
    "Xception with frozen features and 50 epochs of the head; docs/results.md has it beside the study and the default profile"
)
STUDY = {"cnn": (0.80, 0.4), "resnet50": (0.94, 0.2), "xception": (0.60, 1.9)}  # accuracy and loss of its table 3
EPOCHS = {"cnn": 10, "resnet50": 50, "xception": 50}
PROFILES = ("paper", "default")
EVIDENCE = ROOT / "docs" / "evidence" / "issue5_line5"
METRICS, MODEL = "evaluation/metrics.json", "model/model.json"  # of a run's steps


def prove() -> tuple[str, bool]:
    """A run of each profile, and the table of both in the document."""
    weights = {name: imagenet_weights(name) for name in ("resnet50", "xception")}
    if not all(weights.values()):
        return "the real images (../shared) are not here", False
    paths = (f"data.source={SHARED / 'data' / 'ham10000'}", *(f"train.weights.{name}={path}" for name, path in weights.items()))
    for profile in PROFILES:
        keep(profile, paths)
    told = {profile: read_json(EVIDENCE / f"{profile}.json") for profile in PROFILES}
    trained = all(
        told[profile]["architectures"][name]["epochs"] >= epochs for profile in PROFILES for name, epochs in EPOCHS.items()
    )
    sizes = {profile: len(one["classes"]) for profile, one in told.items()} == {"paper": 8, "default": 7}
    shown = table() in (ROOT / "docs" / "results.md").read_text()
    figures = "; ".join(
        f"{profile}: " + ", ".join(f"{name} {in_words(found['accuracy'])}" for name, found in one["architectures"].items())
        for profile, one in told.items()
    )
    return f"accuracy on test, {figures}; the document shows the table: {shown}", trained and sizes and shown


def keep(profile: str, paths: tuple[str, ...]) -> None:
    """See that the evidence of a profile is there and of this code; `paths` are settings of this machine."""
    path, settings = EVIDENCE / f"{profile}.json", (f"train.epochs={EPOCHS['cnn']}", f"train.head_epochs={EPOCHS['resnet50']}")
    params = load_params(profile, settings, ROOT)
    if stands(path, params):
        return
    folder = place_of(f"line5-{profile}", params)
    workspace = Workspace(folder) if folder.exists() else make_workspace(folder)
    result = workspace.json("run", "--profile", profile, *sets(*settings, *paths))
    run = workspace.path / "runs" / result["run_id"]
    told: dict[str, Any] = {"architectures": {}}
    for name in EPOCHS:
        metrics, model = (
            read_json(run / f"{step}-{name}" / place) for step, place in (("evaluate", METRICS), ("train", MODEL))
        )
        told["classes"] = metrics["classes"]
        told["architectures"][name] = {
            "epochs": model["epochs"],
            "parameters": model["parameters"],
            "seconds": next(entry["train_seconds"] for entry in result["architectures"] if entry["name"] == name),
            "accuracy": metrics["test"]["overall"]["accuracy"],
            "balanced_accuracy": metrics["test"]["overall"]["balanced_accuracy"],
            "loss": metrics["test"]["calibration"]["before"]["nll"],
            "sensitivity": {each: found["sensitivity"] for each, found in metrics["test"]["per_class"].items()},
        }
    keep_evidence(path, told, params)


def table() -> str:
    """The study, the paper profile and the default profile, in Markdown: overall as in the study's table 3, then by class."""
    told = {profile: read_json(EVIDENCE / f"{profile}.json")["architectures"] for profile in PROFILES}
    lines = ["| architecture | figure | the study | `paper` here | `default` here |", "|---|---|---|---|---|"]
    for name, (accuracy, loss) in STUDY.items():
        both = [told[profile][name] for profile in PROFILES]
        study = {"accuracy": f"{accuracy:.2f}", "loss": f"{loss:.1f}"}
        for figure in ("accuracy", "loss", "balanced_accuracy"):
            cells = (study.get(figure, ""), *(in_words(one[figure]) for one in both))
            lines.append(f"| {name} | {figure.replace('_', ' ')} | {' | '.join(cells)} |")
        lines.append(f"| {name} | parameters | | {' | '.join(format(one['parameters'], ',') for one in both)} |")
        for label in told["paper"][name]["sensitivity"]:
            cells = [in_words(one["sensitivity"][label]) if label in one["sensitivity"] else "" for one in both]
            lines.append(f"| {name} | sensitivity, {label} | | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
