"""What the run report tells: a run's artifacts as they are, and the few sentences that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from components import GATES
from components.report.pictures import Picture, Sample, embed, photograph, sample
from dermaflow import contracts
from dermaflow.artifacts import ARTIFACT_FILE, open_artifact, read_json
from dermaflow.classes import CLASS_TITLES
from dermaflow.dataset import GLIMPSES, REJECTS_SHOWN, Dataset
from dermaflow.figures import SUBGROUPS
from dermaflow.limits import limits

DX_TYPES = {
    "histo": "histopathology",
    "follow_up": "follow-up",
    "consensus": "expert consensus",
    "confocal": "confocal microscopy",
}
Info = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run as far as it came. Its artifacts are read on demand; what a step did not finish is None.

    Attributes
    ----------
    id: of the run.
    request: `started_at`, `params` (JSON of Params) and `arguments` (of the pipeline).
    tasks: each task that ended, in their order: `task`, `state`, `seconds`, `cached`, and what it told of its work.
    artifacts: the folder of each finished artifact, by "<task>/<name>", in the order of the tasks.
    errors: what failed tasks said of themselves, by task.
    """

    id: str
    request: Info
    tasks: list[Info]
    artifacts: Mapping[str, Path]
    errors: Mapping[str, str]

    def info(self, place: str, kind: str, file: str | None = None) -> Info | None:
        """A JSON file (`<kind>.json` unless told otherwise) of the artifact at "<task>/<name>"."""
        path = self.artifacts.get(place)
        if path is None:
            return None
        open_artifact(path, kind)
        value: Info = read_json(path / (file or f"{kind}.json"))
        return value

    def table(self, place: str, file: str) -> pd.DataFrame | None:
        """A Parquet table of the artifact at "<task>/<name>"."""
        path = self.artifacts.get(place)
        return None if path is None else pd.read_parquet(path / file)

    def picture(self, path: str) -> Picture | None:
        """A picture, by the place of its artifact and its file's name: "<task>/<name>/<file>"."""
        place, _, file = path.rpartition("/")
        found = self.artifacts.get(place)
        return None if found is None else embed(found / file)

    def dataset(self) -> Dataset | None:
        """The Dataset."""
        path = self.artifacts.get("ingest/dataset")
        return None if path is None else Dataset.open(path)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `tone` (good, bad or open), one word, one sentence, and a failed step's own words."""

    tone: str
    word: str
    sentence: str
    error: str | None = None


def gather(run: Run) -> Info:
    """Everything that the template names."""
    arguments = run.request["arguments"]
    dataset, splits = run.dataset(), run.info("split/splits", contracts.SPLITS)
    registration = run.info("register/registration", contracts.REGISTRATION)
    decision = run.info("promote/decision", contracts.DECISION)
    architectures = [_architecture(run, name) for name in arguments["architectures"]]
    candidate = run.info("select/evaluation", contracts.EVALUATION, contracts.METRICS_FILE)
    explanation = run.info("explain/explanation", contracts.EXPLANATION)
    return {
        "run_id": run.id,
        "started_at": run.request["started_at"],
        "profile": arguments["profile"],
        "params": run.request["params"],
        "policy": yaml.safe_load(arguments["policy"]),  # JSON, or the file itself in older runs
        "commit": json.loads(arguments["commit"]),
        "tasks": run.tasks,
        "outcome": _outcome(run, registration, decision),
        "banners": _banners(dataset, splits, architectures, decision, explanation),
        "titles": CLASS_TITLES,
        "subgroup_titles": SUBGROUPS,
        "dataset": None if dataset is None else dataset.info,
        "rejects": _rejects(dataset),
        "clinical": None if dataset is None else _clinical(dataset.manifest),
        "samples": _samples(run, dataset),
        "validation": run.info("validate/report", contracts.VALIDATION_REPORT),
        "gates": {name: run.info(f"{name}/report", contracts.VALIDATION_REPORT) for name in GATES},
        "splits": splits,
        "plan": run.info("augment/plan", contracts.PLAN),
        "masks": run.info("segment/masks", contracts.MASKS),
        "architectures": architectures,
        "folds": _folds(run),
        "selection": run.info("select/selection", contracts.SELECTION),
        "candidate": candidate,
        "explanation": explanation,
        "comparison": run.info("compare/comparison", contracts.COMPARISON),
        "registration": registration,
        "decision": decision,
        "digests": _digests(run, dataset, splits, registration),
        "artifacts": _artifacts(run),
        "limits": _limits(dataset, candidate),
        "picture": run.picture,
    }


def _outcome(run: Run, registration: Info | None, decision: Info | None) -> Outcome:
    failed = [task["task"] for task in run.tasks if task["state"] != "SUCCEEDED"]
    if failed:
        kept = f" {_version(registration)} had been registered before." if registration else " No model version was registered."
        also = f" Then {' and '.join(failed[1:])} failed too." if failed[1:] else ""
        return Outcome("bad", "Failed", f"The run failed at step {failed[0]}.{also}{kept}", run.errors.get(failed[0]))
    if registration is None or decision is None:
        last = f"the last step that finished is {run.tasks[-1]['task']}" if run.tasks else "no step of it has finished"
        return Outcome("open", "Not finished", f"The run was interrupted or is still going on: {last}.")
    return _decided(_version(registration), decision)


def _decided(candidate: str, decision: Info) -> Outcome:
    outcome, champion = decision["outcome"], decision["champion_after"]
    place = f"{champion['name']} version {champion['version']}" if champion else "none"
    refusing = [gate.replace("_", " ") for gate in decision["refused_by"]]
    told = {
        "promoted": ("good", "Promoted", f"{candidate} passed every gate and is now {place}, the champion."),
        "already_champion": ("good", "Champion already", f"{candidate} passed every gate and is {place} already."),
        "would_promote": (
            "good",
            "Would be promoted",
            f"{candidate} passed every gate. promote.mode is dry_run, so nothing was moved.",
        ),
        "awaiting_approval": (
            "open",
            "Waits for approval",
            f"{candidate} passed every gate. The policy asks people to agree: dermaflow promote --approver NAME.",
        ),
        "refused": (
            "bad",
            "Refused",
            f"{candidate} did not pass {len(refusing)} of {len(decision['gates'])} gates: {', '.join(refusing)}.",
        ),
        "disabled": ("open", "Not promoted", f"{candidate} is registered; promotion is disabled (promote.mode)."),
    }
    return Outcome(*told[outcome])


def _version(registration: Info) -> str:
    return f"{registration['model']} version {registration['version']} ({registration['facts']['architecture']})"


def _banners(
    dataset: Dataset | None, splits: Info | None, architectures: list[Info], decision: Info | None, explanation: Info | None
) -> list[str]:
    """What nobody may overlook, since it takes the meaning from every figure below."""
    banners = []
    if dataset is not None and dataset.synthetic:
        banners.append("Synthetic images: a check of the pipeline, not a result. Nothing here says anything about patients.")
    random = [entry["name"] for entry in architectures if entry["model"] and entry["model"]["pipeline_check"]]
    if random:
        banners.append(f"Pipeline check, not a result: the backbone of {' and '.join(random)} has random weights.")
    if dataset is not None and dataset.mark:
        banners.append(f"{dataset.mark[0].upper()}{dataset.mark[1:]}.")
    if splits is not None and not splits["promotable"]:
        leaks, by = splits["leakage"]["all"], "image, not by lesion" if splits["strategy"] == "random" else "lesion"
        banners.append(
            f"Split by {by}: {leaks['with_relative_in_train']} of {leaks['test_images']} test images have a relative in train, "
            "so every figure below is too good. Such a model can not be promoted."
        )
    if explanation is not None and explanation["artefact"]["suspected"]:
        classes = ", ".join(explanation["artefact"]["suspected"])
        banners.append(f"An artefact is suspected in {classes}: what speaks for it lies off the lesion. See Explanation.")
    if decision is not None and decision["waived"]:
        banners.append(
            f"Waived, by the policy or by a person: {', '.join(decision['waived'])}. The reasons stand under Decision."
        )
    return banners


def _limits(dataset: Dataset | None, candidate: Info | None) -> list[str]:
    judged = [] if candidate is None else [values["n_lesions"] for values in candidate["test"]["per_class"].values()]
    return limits(
        synthetic=dataset is not None and dataset.synthetic,
        classes=None if dataset is None else len(dataset.classes),
        fewest_lesions=min(judged, default=None),
    )


def _rejects(dataset: Dataset | None) -> Info | None:
    if dataset is None:
        return None
    counts = dataset.rejects["reason"].value_counts().sort_index()
    return {
        "total": len(dataset.rejects),
        "reasons": {str(reason): int(count) for reason, count in counts.items()},
        "rows": [
            {**row, "picture": photograph(dataset.artifact.path / GLIMPSES / f"{place}.jpg")}
            for place, row in enumerate(dataset.rejects.head(REJECTS_SHOWN).astype(str).to_dict("records"))
        ],
    }


def _clinical(manifest: pd.DataFrame) -> Info:
    """How lesions were diagnosed, and age and sex as recorded with each lesion's first image."""
    lesions = manifest.drop_duplicates("lesion_id")
    age = pd.to_numeric(lesions["age"], errors="coerce").dropna()
    return {
        "lesions": len(lesions),
        "dx_type": {DX_TYPES.get(name, name): count for name, count in _counted(lesions["dx_type"]).items()},
        "sex": _counted(lesions["sex"]),
        "age": {"known": len(age), "median": float(age.median()), "low": float(age.min()), "high": float(age.max())}
        if len(age)
        else None,
    }


def _counted(values: pd.Series[Any]) -> dict[str, int]:
    """Counts by value, the largest first, names in order among equals."""
    names = values.fillna("").astype(str).replace({"": "not recorded", "nan": "not recorded"})
    counts = names.value_counts()
    return {str(name): int(counts[name]) for name in sorted(counts.index, key=lambda name: (-counts[name], name))}


def _samples(run: Run, dataset: Dataset | None) -> dict[str, list[Sample]] | None:
    if dataset is None:
        return None
    table = run.table("split/splits", "splits.parquet")
    split_of = {} if table is None else dict(zip(table["image_id"], table["split"], strict=True))
    return sample(dataset, split_of, run.request["params"]["split"]["seed"])


def _architecture(run: Run, name: str) -> Info:
    seconds = [task["seconds"] for task in run.tasks if task["task"] == f"train-{name}"]
    return {
        "name": name,
        "model": run.info(f"train-{name}/model", contracts.MODEL),
        "history": run.info(f"train-{name}/history", contracts.HISTORY),
        "metrics": run.info(f"evaluate-{name}/evaluation", contracts.EVALUATION, contracts.METRICS_FILE),
        "seconds": seconds[0] if seconds else None,
        "cached": any(task["cached"] for task in run.tasks if task["task"] == f"train-{name}"),
    }


def _folds(run: Run) -> Info | None:
    """What was held out from models of each architecture, and what these say together; None where no folds were asked for."""
    count = run.request["params"]["split"].get("folds", 0)
    if not count:
        return None
    names = run.request["arguments"]["architectures"]
    return {
        "count": count,
        "pooled": {name: run.info(f"pool-{name}/evaluation", contracts.EVALUATION, contracts.METRICS_FILE) for name in names},
    }


def _digests(run: Run, dataset: Dataset | None, splits: Info | None, registration: Info | None) -> dict[str, str]:
    """The digests by which an auditor can check what went in and what came out."""
    arguments = run.request["arguments"]
    digests = {"source, every file": arguments["source_digest"], "pipeline specification": arguments["pipeline_digest"]}
    if dataset is not None:
        digests |= {"data, content": dataset.content_digest, "data, layout of the shards": dataset.info["layout_digest"]}
    if splits is not None:
        digests["splits"] = splits["digest"]
    if registration is not None:
        facts = registration["facts"]
        digests |= {
            "expectation suite": facts["data_validation"]["suite_digest"],
            "augmentation plan": facts["plan_digest"],
            "parameters": facts["params_digest"],
            "model weights": facts["model"]["weights_digest"],
            "predictions": facts["predictions_digest"],
            "registered evidence (key)": registration["key"],
        }
    return {name: digest for name, digest in digests.items() if digest}


def _artifacts(run: Run) -> list[Info]:
    """Each finished artifact with its kind and digest."""
    return [{"place": place, **read_json(path / ARTIFACT_FILE)} for place, path in run.artifacts.items()]
