"""Explain a model: where in the image its answers come from, and what these maps are worth, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.explain import measures, perturbation, second_method
from components.explain.attribution import METHOD, LogitExplainer
from components.explain.cells import CELLS
from components.explain.checks import SAMPLE_RULE, Checks, Explained
from components.explain.kept import Kept
from components.explain.pictures import Picture, draw_gallery
from components.explain.selection import BACKGROUND_RULE, SELECTION_RULE, choose_background, choose_images
from dermaflow import contracts, places
from dermaflow.architectures import ARCHITECTURES
from dermaflow.artifacts import file_digest, json_digest, new_artifact, open_artifact, write_json
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.masking import apply_masks
from dermaflow.metrics import softmax
from dermaflow.params import ExplainParams
from dermaflow.predict import load_model, model_inputs
from dermaflow.progress import progress

GALLERY_IMAGES = 56  # drawn at most, the first in the order of choice: more would not be looked at


def explain(
    dataset: Path,
    splits: Path,
    masks: Path,
    model: Path,
    evaluation: Path,
    params: ExplainParams,
    target: Path,
    *,
    state: Path | None = None,
) -> dict[str, Any]:
    """Attribute the predicted class's logit of chosen images to their pixels, and judge the attributions.

    An interrupted explanation goes on with the next image.

    Parameters
    ----------
    dataset, splits, masks, model, evaluation: finished artifacts of the same run.
    params: how many images to explain and to take as background, and the seed of all choices.
    target: where the Explanation artifact is to be.
    state: folder of what is done already; None: that of the working folder.

    Returns
    -------
    What `explanation.json` says: method, rules, digests, additivity, a summary of the measures and the checks. Poor figures
    are recorded, not raised: the promotion policy judges them.

    Raises
    ------
    InputError
        when an artifact is missing, they do not belong together, or there is nothing to explain or to compare with.
    """
    data = Dataset.open(dataset)
    _check_same_model(model, evaluation)
    network, info = load_model(model)
    sight = _Sight(data, masks, info)
    chosen = _choose_images(data, evaluation, splits, params)
    background = _choose_background(data, splits, params, params.seed)

    digests = _digests(data, splits, masks, evaluation, info)
    kept = Kept(state or places.state(), _key(digests, background, params))
    explainer = LogitExplainer(network, sight.inputs(data.rows_of(background["image_id"])))
    results = []
    for row, predicted, true in zip(data.rows_of(chosen["image_id"]), chosen["predicted"], chosen["label"], strict=True):
        position, right = data.classes.index(predicted), data.classes.index(true)
        results.append(_explain_one(explainer, sight, int(row), position, right, kept))
        progress("explaining", len(results), len(chosen))

    checks = Checks(explainer, params.seed, kept)
    explained = [result.explained for result in results]
    other = _choose_background(data, splits, params, params.seed + 1)
    table = _table(chosen, results)
    for checked in (
        checks.insertion_and_deletion(explained),
        checks.stability(explained, sight.inputs(data.rows_of(other["image_id"]))),
        checks.second_method(explained),
    ):
        table = table.merge(checked, on="image_id", how="left")
    shuffled = checks.randomisation(explained)

    spoken = _spoken(chosen, results)
    summary = measures.summarise(table, spoken, data.classes, params.seed)
    explanation = {
        "architecture": info["architecture"],
        "masks": info["masks"],
        "synthetic": data.synthetic,
        "method": _method(),
        "n": len(chosen),
        "requested": params.images,
        "seed": params.seed,
        "selection_rule": SELECTION_RULE,
        "background": _describe_background(data, background, params),
        "digests": digests,
        **_additivity(table),
        "artefact": {"suspected": measures.suspected(summary), "limit": measures.ON_LESION_LIMIT},
        "summary": summary,
        "checks": _describe_checks(measures.by_stage(shuffled, table, params.seed), _describe_background(data, other, params)),
    }
    with new_artifact(target, contracts.EXPLANATION) as folder:
        table.to_parquet(folder / "attributions.parquet", index=False)
        spoken.to_parquet(folder / "evidence.parquet", index=False)
        shuffled.to_parquet(folder / "randomisation.parquet", index=False)
        _write_maps(folder / "attributions.npz", table, results)
        _draw(folder / "gallery.png", table, results, explanation)
        write_json(folder / "explanation.json", explanation)
    kept.forget()
    return explanation


# --- what the model sees ---


@dataclass(frozen=True)
class _Sight:
    """Images and lesions in the frame in which a model sees them (`train.masks` decides)."""

    data: Dataset
    masks: Path
    info: dict[str, Any]

    def inputs(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Model inputs of manifest rows, float32 [k, size, size, channels]."""
        return model_inputs(self.data, rows, self.masks, self.info)

    def lesion(self, row: int) -> tuple[npt.NDArray[np.uint8], str]:
        """Return a row's lesion, uint8 0/1 [size, size], and who drew it: the expert where there is one."""
        rows = np.asarray([row])
        segmented = contracts.masks_of(self.masks, self.data, rows)
        expert = bool(self.data.manifest["has_truth"].iloc[row])
        lesion = self.data.truth(rows) if expert else segmented
        if self.info["masks"] == "crop":  # cut out and scaled as the image is: by the segmented mask
            shades = np.repeat(lesion[..., None] * np.uint8(255), 3, axis=-1)
            lesion = (apply_masks(shades, segmented, "crop")[..., 0] > 127).astype(np.uint8)
        return lesion[0], "expert" if expert else "segmented"


# --- choice ---


def _check_same_model(model: Path, evaluation: Path) -> None:
    """Refuse an evaluation of another model, whose predicted classes are not what this network predicts."""
    open_artifact(evaluation, contracts.EVALUATION)
    judged = contracts.read_metrics(evaluation).get("model_digest")
    if judged != open_artifact(model, contracts.MODEL).digest:
        raise InputError(f"{evaluation} judged another model ({judged}) than {model}; use the evaluation of this model")


def _choose_images(data: Dataset, evaluation: Path, splits: Path, params: ExplainParams) -> pd.DataFrame:
    predictions = contracts.read_predictions(evaluation)
    chosen = choose_images(predictions, data.classes, count=params.images, seed=params.seed)
    if chosen.empty:
        raise InputError(f"{evaluation}: no test or validation images in predictions.parquet, so nothing to explain")
    split_of = contracts.read_splits(splits).set_index("image_id")["split"]
    differing = chosen[chosen["image_id"].map(split_of) != chosen["split"]]
    if len(differing):
        raise InputError(
            f"image {differing['image_id'].iloc[0]} is a {differing['split'].iloc[0]} image in {evaluation}, but not in "
            f"{splits}; use artifacts of the same run"
        )
    return chosen


def _choose_background(data: Dataset, splits: Path, params: ExplainParams, seed: int) -> pd.DataFrame:
    background = choose_background(contracts.read_splits(splits), data.classes, count=params.background, seed=seed)
    if background.empty:
        raise InputError(f"{splits}: no training images, so nothing to compare the explained images with")
    return background


# --- one image ---


@dataclass(frozen=True)
class _Result:
    """One image explained.

    Attributes
    ----------
    explained: the image, its lesion and its map.
    numbers: its columns of attributions.parquet.
    evidence: its rows of evidence.parquet: what speaks for the predicted class and, where that is wrong, for the true one.
    """

    explained: Explained
    numbers: dict[str, Any]
    evidence: list[dict[str, Any]]


def _explain_one(explainer: LogitExplainer, sight: _Sight, row: int, position: int, true: int, kept: Kept) -> _Result:
    image = sight.inputs(np.asarray([row]))[0]
    lesion, mask_source = sight.lesion(row)

    def attribute() -> dict[str, Any]:
        attribution = explainer.attribute(image, position)
        colours = attribution[..., :3]  # a fourth channel is the lesion mask itself
        return {
            "signed": colours.sum(axis=-1),
            "weights": np.abs(colours).sum(axis=-1),
            "sum": attribution.sum(dtype=np.float64),
            "mask_channel_share": np.float64(_share(np.abs(attribution[..., 3:]), np.abs(attribution))),
            "logits": explainer.logits(image[None])[0],
        }

    image_id = str(sight.data.manifest["image_id"].iloc[row])
    found = kept.get("attribution", image_id, attribute)
    logits, signed, weights = found["logits"], found["signed"], found["weights"]
    logit, base = float(logits[position]), float(explainer.base_logits[position])
    spoken = {position: measures.evidence(signed, lesion)}
    if true != position:

        def attribute_true() -> dict[str, Any]:
            return {"signed": explainer.attribute(image, true)[..., :3].sum(axis=-1)}

        spoken[true] = measures.evidence(kept.get("attribution of the true class", image_id, attribute_true)["signed"], lesion)
    numbers = {
        "probability": float(softmax(logits[None])[0, position]),
        "logit": logit,
        "base_logit": base,
        "additivity_error": measures.additivity_error(found["sum"], logit, base),
        "concentration": measures.concentration(weights, lesion),
        "baseline_concentration": measures.concentration(measures.centred_gaussian(lesion), lesion),
        "on_lesion": float(measures.on_lesion(pd.DataFrame([spoken[position]]))[0]),
        "pointing_hit": measures.pointing_hit(signed, lesion),
        "centre_hit": measures.centre_hit(lesion),
        "area_share": measures.area_share(lesion),
        "mask_source": mask_source,
        "mask_channel_share": float(found["mask_channel_share"]),
    }
    rows = [{"class": sight.data.classes[each], **told} for each, told in spoken.items()]
    return _Result(Explained(image_id, image, lesion, position, signed), numbers, rows)


def _share(part: npt.NDArray[np.float32], whole: npt.NDArray[np.float32]) -> float:
    total = float(whole.sum(dtype=np.float64))
    return float(part.sum(dtype=np.float64)) / total if total > 0 else 0.0


# --- what is written ---


def _table(chosen: pd.DataFrame, results: Sequence[_Result]) -> pd.DataFrame:
    numbers = pd.DataFrame([result.numbers for result in results])
    answers = {"pointing_hit": "boolean", "centre_hit": "boolean"}  # pandas' own, which has a third state
    return pd.concat([chosen.drop(columns="correct"), numbers.astype(answers)], axis=1)


def _spoken(chosen: pd.DataFrame, results: Sequence[_Result]) -> pd.DataFrame:
    """What speaks for which class, one row for an image and a class: image_id, lesion_id, class, as `measures.evidence`."""
    named = zip(chosen["image_id"], chosen["lesion_id"], results, strict=True)
    return pd.DataFrame(
        [{"image_id": image, "lesion_id": lesion, **row} for image, lesion, result in named for row in result.evidence]
    )


def _method() -> dict[str, Any]:
    return {
        "name": METHOD,
        "explains": "the logit of the predicted class, against the mean logit of the background",
        "references": ["Lundberg and Lee, NeurIPS 2017", "Shrikumar, Greenside and Kundaje, ICML 2017"],
    }


def _describe_background(data: Dataset, background: pd.DataFrame, params: ExplainParams) -> dict[str, Any]:
    pixels = data.manifest["pixel_digest"].iloc[data.rows_of(background["image_id"])]
    return {
        "rule": BACKGROUND_RULE,
        "n": len(background),
        "requested": params.background,
        "image_ids": background["image_id"].tolist(),
        "digest": json_digest([list(pair) for pair in zip(background["image_id"], pixels, strict=True)]),
    }


def _digests(data: Dataset, splits: Path, masks: Path, evaluation: Path, info: dict[str, Any]) -> dict[str, str]:
    """Digests of what was explained with what: contents only, so that the same run repeated says the same."""
    mask_files = open_artifact(masks, contracts.MASKS).files
    return {
        "dataset": data.content_digest,
        "splits": contracts.read_info(splits, contracts.SPLITS)["digest"],
        "masks": json_digest({name: digest for name, digest in mask_files.items() if name.startswith("mask-")}),
        "model_weights": info["weights_digest"],
        "predictions": open_artifact(evaluation, contracts.EVALUATION).files["predictions.parquet"],
    }


def _key(digests: dict[str, str], background: pd.DataFrame, params: ExplainParams) -> str:
    """What kept results belong to: an interrupted explanation goes on only with the same inputs, parameters and code."""
    code = {path.name: file_digest(path) for path in Path(__file__).parent.glob("*.py")}
    told = {**digests, "background": background["image_id"].tolist(), "params": params.model_dump(mode="json"), "code": code}
    return json_digest(told).removeprefix("sha256:")[:32]


def _describe_checks(stages: list[dict[str, Any]], background: dict[str, Any]) -> dict[str, Any]:
    """How each check was made, on how many images, and what randomisation came to, stage by stage."""
    return {
        "rule": SAMPLE_RULE,
        "cells": CELLS,
        "insertion": {
            "steps": perturbation.STEPS,
            "blur": perturbation.BLUR,
            "random_orders": perturbation.RANDOM_ORDERS,
            "reference": "Petsiuk, Das and Saenko, BMVC 2018",
        },
        "stability": {"background": background},
        "randomisation": {"stages": stages, "reference": "Adebayo et al., NeurIPS 2018"},
        "second_method": {"name": second_method.METHOD, "evaluations": second_method.EVALUATIONS, "shap": version("shap")},
    }


def _additivity(table: pd.DataFrame) -> dict[str, Any]:
    median, largest = (float(value) for value in table["additivity_error"].agg(["median", "max"]))
    finite = bool(np.isfinite(table["additivity_error"]).all())  # one NaN is a broken attribution, not a missing one
    return {
        "additivity_ok": finite and median <= measures.ADDITIVITY_LIMIT,
        "additivity": {
            "median": median if finite else None,
            "max": largest if finite else None,
            "limit": measures.ADDITIVITY_LIMIT,
        },
    }


def _write_maps(path: Path, table: pd.DataFrame, results: Sequence[_Result]) -> None:
    """Write signed maps, float16 [n, size, size] in -1..1, each to be multiplied by its `scale`, float32 [n].

    Attributions of single pixels come near float16's smallest numbers; relative to the image's largest they do not.
    """
    signed_maps = [result.explained.map for result in results]
    scale = np.asarray([np.abs(signed).max() for signed in signed_maps], np.float32)
    maps = np.stack(
        [(signed / by if by > 0 else signed).astype(np.float16) for signed, by in zip(signed_maps, scale, strict=True)]
    )
    np.savez_compressed(path, image_id=table["image_id"].to_numpy(dtype=str), maps=maps, scale=scale)


def _draw(path: Path, table: pd.DataFrame, results: Sequence[_Result], explanation: dict[str, Any]) -> None:
    rows = table.head(GALLERY_IMAGES)
    shown = [result.explained for result in results[: len(rows)]]
    pictures = [
        Picture(one.image[..., :3].astype(np.uint8), one.lesion, one.map, label, predicted, probability, one.image_id)
        for one, label, predicted, probability in zip(shown, rows["label"], rows["predicted"], rows["probability"], strict=True)
    ]
    title = f"{ARCHITECTURES[explanation['architecture']].title}: where its answers come from"
    draw_gallery(path, pictures, title=title, synthetic=explanation["synthetic"])
