"""Two runs or two registered models side by side: one HTML file, made of their artifacts alone.

What differs in what they were made from and how; their figures, and the paired difference on the test images that neither
was made with; what their maps are worth. What the page says is in `comparison.html.jinja`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from components.report.page import render
from components.report.pictures import Picture, embed
from dermaflow import contracts, places, registry
from dermaflow.artifacts import read_json, write_text
from dermaflow.classes import CLASS_TITLES
from dermaflow.errors import InputError
from dermaflow.figures import TEST
from dermaflow.metrics import Interval, paired_difference
from dermaflow.params import Params, flat
from dermaflow.records import Records, Registered, Version
from dermaflow.run_folder import REQUEST, tasks_of
from pipelines.judging import registered_version
from pipelines.results import artifact, known_runs

TEMPLATE = "comparison.html.jinja"
PAIRED = ("balanced_accuracy", "accuracy", "auroc", "f1")  # of all classes
OF_CLASS = "sensitivity"
PICTURES = {
    "evaluation/confusion.png": "Which class is taken for which.",
    "evaluation/calibration.png": "How sure, and how right.",
    "explanation/gallery.png": "Contributions of pixels to the predicted class.",
}
Info = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes
    ----------
    name: as it was asked for.
    title: what it is: a version of a registered model, and the run that made it.
    evaluation, explanation, splits: artifacts.
    facts: what its registration says of it.
    params: the parameters of its run.
    git: commit and dirtiness.
    tasks: of its run; empty where only the registry knows it.
    """

    name: str
    title: str
    evaluation: Path
    explanation: Path
    splits: Path
    facts: Info
    params: Info
    git: Info
    tasks: list[Info]

    @property
    def classes(self) -> list[str]:
        """Its classes, in the order of its logits."""
        found: list[str] = self.facts["model"]["classes"]
        return found

    def picture(self, path: str) -> Picture | None:
        """A picture of its evaluation or explanation."""
        kind, file = path.split("/")
        return embed({"evaluation": self.evaluation, "explanation": self.explanation}[kind] / file)


def compare(one: str, other: str, params: Params, target: Path) -> Path:
    """Write the page that compares two candidates.

    Parameters
    ----------
    one, other: a run id, `latest`, NAME@ALIAS or NAME/VERSION.
    params: where the registry is; bootstrap and seed of the paired intervals.

    Raises
    ------
    InputError
        when there is no such run or version, or a run has registered nothing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        a, b = (open_side(name, params, Path(scratch, place)) for name, place in ((one, "one"), (other, "other")))
        write_text(target, render(TEMPLATE, gather(a, b, params)))
    return target


def open_side(name: str, params: Params, scratch: Path) -> Side:
    """The candidate of a run, or a registered version, whose evidence is fetched into `scratch`."""
    if (places.RUNS / name / REQUEST).exists():
        return _of_run(name, (places.RUNS / name).resolve())
    found = registered_version(name, params)
    if found is None:
        raise InputError(
            f"{name!r} is neither a run in {places.RUNS}/ (there are: {known_runs()}) nor a registered model as NAME@ALIAS or "
            "NAME/VERSION, for example dermaflow-candidate@challenger"
        )
    client, version = found
    side = side_of(Registered(client), version, scratch)
    return replace(side, name=name, explanation=registry.evidence(client, version, "explanation", scratch))


def side_of(records: Records, version: Version, scratch: Path) -> Side:
    """A registered version by its evidence, all but its explanation: what figures are compared by."""
    bundle = read_json(records.evidence(version.run_id, "evidence.json", scratch))
    evaluation, splits = (records.evidence(version.run_id, part, scratch) for part in ("evaluation", "splits"))
    return Side(
        name=f"{version.name}/{version.version}",
        title=f"{version.name} version {version.version}, of run {bundle['run_id']}",
        evaluation=evaluation,
        explanation=scratch / "explanation",
        splits=splits,
        facts=bundle,
        params=bundle["params"],
        git=bundle["git"],
        tasks=[],
    )


def _of_run(name: str, folder: Path) -> Side:
    registration = artifact(folder, "register", contracts.REGISTRATION)
    if registration is None:
        raise InputError(f"run {folder.name} has registered no model, so there is nothing of it to compare")
    told, request = contracts.read_info(registration, contracts.REGISTRATION), read_json(folder / REQUEST)
    return Side(
        name=name,
        title=f"run {folder.name}, which made {told['model']} version {told['version']}",
        evaluation=folder / "select" / "evaluation",
        explanation=folder / "explain" / "explanation",
        splits=folder / "split" / "splits",
        facts=told["facts"],
        params=request["params"],
        git=json.loads(request["arguments"]["commit"]),
        tasks=tasks_of(folder),
    )


def gather(a: Side, b: Side, params: Params) -> Info:
    """Everything that the template names."""
    common = common_tests(a, b)
    differences = None if common.undefined else _differences(common, a.classes, params)
    return {
        "sides": (a, b),
        "titles": CLASS_TITLES,
        "sentence": _sentence(a, b, common, differences),
        "banners": _banners(a, b),
        "made_of": [(name, *both, both[0] == both[1]) for name, both in _made_of(a, b).items()],
        "changed": _changed(a.params, b.params),
        "common": common,
        "differences": differences,
        "agreement": None if common.undefined else _agreement(common, a.classes),
        "classes": [name for name in a.classes if name in b.classes],
        "test": [side.facts["test"] for side in (a, b)],
        "explanations": [contracts.read_info(side.explanation, contracts.EXPLANATION) for side in (a, b)],
        "same_explained": _explained(a) == _explained(b),
        "seconds": _seconds(a.tasks, b.tasks),
        "pictures": [(title, path, [side.picture(path) for side in (a, b)]) for path, title in PICTURES.items()],
        "bootstrap": params.evaluate.bootstrap,
    }


@dataclass(frozen=True)
class Common:
    """Test images that both have judged and neither was made with.

    Attributes
    ----------
    tables: predictions of both, in the same order.
    left_out: how many of both's test images one of them was trained or validated on.
    undefined: why there is nothing to compare, if so.
    """

    tables: tuple[pd.DataFrame, pd.DataFrame]
    left_out: int = 0
    undefined: str | None = None

    @property
    def images(self) -> int:
        """How many they are."""
        return len(self.tables[0])

    @property
    def lesions(self) -> int:
        """Of how many lesions."""
        return int(self.tables[0]["lesion_id"].nunique())


def common_tests(a: Side, b: Side) -> Common:
    """The images that are in test of both under the same id, with the same bytes, label and lesion."""
    nothing = pd.DataFrame()
    if a.classes != b.classes:
        told = " and ".join(", ".join(side.classes) for side in (a, b))
        return Common((nothing, nothing), undefined=f"they tell other classes apart: {told}")
    splits = [contracts.read_splits(side.splits) for side in (a, b)]
    tests = [table[table["split"] == TEST] for table in splits]
    same = tests[0].merge(tests[1], on=["image_id", "lesion_id", "label", "source_digest", "pixel_digest"])
    seen = contracts.seen_before(same, splits[0]) | contracts.seen_before(same, splits[1])
    kept = set(same.loc[~seen, "image_id"])
    if not kept:
        why = "each test image that both judged was in the training of one of them" if len(same) else "no test image is of both"
        return Common((nothing, nothing), int(seen.sum()), why)
    one, other = (_test_predictions(side.evaluation, kept) for side in (a, b))
    return Common((one, other), int(seen.sum()))


def _test_predictions(evaluation: Path, images: set[str]) -> pd.DataFrame:
    table = contracts.read_predictions(evaluation)
    return table[(table["split"] == TEST) & table["image_id"].isin(images)].sort_values("image_id", ignore_index=True)


def _differences(common: Common, classes: Sequence[str], params: Params) -> dict[str, Interval]:
    """Second minus first, by the names of `paired_difference`."""
    one, other = common.tables
    how = {"bootstrap": params.evaluate.bootstrap, "seed": params.evaluate.seed}
    names = [*PAIRED, *(f"{name}.{OF_CLASS}" for name in classes)]
    return {name: paired_difference(other, one, classes, metric=name, **how) for name in names}


def _sentence(a: Side, b: Side, common: Common, differences: dict[str, Interval] | None) -> str:
    if a.facts["model"]["weights_digest"] == b.facts["model"]["weights_digest"]:
        return "They are the same model: its weights are equal to the last bit."
    if differences is None:
        return f"Their figures can not be compared image by image: {common.undefined}. Each stands for its own test images."
    found = differences[PAIRED[0]]
    where = f"On the {common.images:,} test images of {common.lesions:,} lesions that neither was made with,"
    if found["estimate"] is None or found["low"] is None or found["high"] is None:
        return f"{where} the difference in balanced accuracy is not defined."
    by = f"{abs(found['estimate']):.3f} {'higher' if found['estimate'] > 0 else 'lower'}"
    ends = f"95 % interval {found['low']:.3f} to {found['high']:.3f}"
    chance = "which chance explains" if found["low"] <= 0 <= found["high"] else "which chance does not explain"
    return f"{where} the balanced accuracy of {b.name} is {by} than that of {a.name} ({ends}), {chance}."


def _banners(a: Side, b: Side) -> list[str]:
    """What nobody may overlook, of each side."""
    told = []
    for side in (a, b):
        facts = side.facts
        if facts["synthetic"]:
            told.append(f"{side.name}: synthetic images. Nothing here says anything about patients.")
        if facts["pipeline_check"]:
            told.append(f"{side.name}: pipeline check, not a result: its backbone has random weights.")
        if not facts["promotable_split"]:
            told.append(f"{side.name}: {facts['mark'] or 'not split by lesion'}. Its figures are too good.")
    return told


def _made_of(a: Side, b: Side) -> dict[str, list[Any]]:
    """What each was made from, by name."""

    def of(side: Side) -> dict[str, Any]:
        facts, model, data = side.facts, side.facts["model"], side.facts["data"]
        libraries = model["environment"]["libraries"]
        return {
            "architecture": facts["architecture"],
            "parameters": model["parameters"],
            "initial weights": model["weights"]["digest"] or "random",
            "trained weights": model["weights_digest"],
            "tuned from": model["tuned_from"] or "nowhere",
            "data": data["name"],
            "images": data["counts"]["images"],
            "lesions": data["counts"]["lesions"],
            "data, content": data["content_digest"],
            "splits": facts["splits"]["digest"],
            "test set": facts["splits"]["test_set"]["digest"],
            "augmentation plan": facts["plan_digest"],
            "profile": facts["profile"],
            "commit": f"{side.git['commit']}{' with uncommitted changes' if side.git['dirty'] else ''}",
            "device": ", ".join(model["device"]["gpus"]) or f"{model['environment']['processor']}, no GPU",
            "precision": model["device"]["precision"],
            "libraries": ", ".join(f"{name} {version}" for name, version in sorted(libraries.items())),
        }

    one, other = of(a), of(b)
    return {name: [one[name], other[name]] for name in one}


def _changed(one: Info, other: Info) -> list[tuple[str, Any, Any]]:
    """Parameters that differ: key as on the command line, and both values; None where one has no such parameter."""
    a, b = flat(one), flat(other)
    return [(key, a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def _agreement(common: Common, classes: Sequence[str]) -> list[Info]:
    """How many images of each class both, one or none of the two classify correctly."""
    columns = contracts.logit_columns(classes)
    right = [
        table[columns].to_numpy().argmax(axis=1) == table["label"].map({name: i for i, name in enumerate(classes)}).to_numpy()
        for table in common.tables
    ]
    counts = pd.DataFrame(
        {
            "label": common.tables[0]["label"],
            "both": right[0] & right[1],
            "first": right[0] & ~right[1],
            "second": ~right[0] & right[1],
            "none": ~(right[0] | right[1]),
        }
    )
    by_class = counts.groupby("label").sum().reindex(list(classes), fill_value=0)
    by_class.loc["all"] = by_class.sum()
    return [{"label": str(name), **{str(key): int(count) for key, count in row.items()}} for name, row in by_class.iterrows()]


def _explained(side: Side) -> set[str]:
    return set(pd.read_parquet(side.explanation / "attributions.parquet", columns=["image_id"])["image_id"])


def _seconds(one: list[Info], other: list[Info]) -> list[Info]:
    """Wall seconds of each task of two runs, in their order; None where a run has no such task."""
    both = [{task["task"]: task for task in tasks} for tasks in (one, other)]
    names = list(dict.fromkeys([task["task"] for task in (*one, *other)]))
    return [{"task": name, "both": [tasks.get(name) for tasks in both]} for name in names] if all(both) else []


def file_name(one: str, other: str) -> str:
    """The page's name where none is given."""
    return "-".join(["compare", *(re.sub(r"[^\w.-]+", "-", name) for name in (one, other))]) + ".html"
