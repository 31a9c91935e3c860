"""Compare: champion and challenger on the newest test set, without the images that either of them was trained on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from dermaflow import contracts, registry
from dermaflow.access import open_registry
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.contracts import seen_before
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.metrics import paired_difference
from dermaflow.params import EvaluateParams, RegisterParams
from dermaflow.refusals import CI, refusals_told

METRIC = "balanced_accuracy"


@refusals_told(CI)
def compare(
    dataset: Path, splits: Path, masks: Path, evaluation: Path, params: EvaluateParams, register: RegisterParams, target: Path
) -> dict[str, Any]:
    """Run the champion over the test images of this run and write how much better the challenger is.

    An image is left out when its bytes or its pixels were in the train or validation part of either model, whatever its
    name was then.

    Parameters
    ----------
    evaluation: of the challenger.

    Returns
    -------
    The content of comparison.json: champion (None where there is none yet), test_set, images and lesions compared,
    left_out (images that each was trained on), difference in METRIC (challenger minus champion, with its 95 % interval by
    paired bootstrap over lesions), and undefined, why there is no difference, or None.

    Raises
    ------
    InputError
        when the registry does not answer, or an artifact is missing.
    """
    client = open_registry(register.tracking_uri)
    champion = registry.version_of(client, registry.PRODUCTION_MODEL, registry.CHAMPION)
    table = contracts.read_splits(splits)
    test_set = contracts.read_info(splits, contracts.SPLITS)["test_set"]
    info: dict[str, Any] = {
        "champion": None,
        "metric": METRIC,
        "test_set": test_set,
        "images": 0,
        "lesions": 0,
        "left_out": {"champion": 0, "challenger": 0},
        "difference": None,
        "undefined": "there is no champion yet",
    }
    theirs = pd.DataFrame()
    if champion is not None:
        info["champion"] = {"name": champion.name, "version": int(champion.version)}
        with tempfile.TemporaryDirectory() as scratch:
            found = _compared(client, champion, Dataset.open(dataset), table, masks, evaluation, params, Path(scratch))
        theirs = found.pop("predictions")
        info |= found
    with new_artifact(target, contracts.COMPARISON) as folder:
        theirs.to_parquet(folder / "champion.parquet", index=False)
        write_json(folder / "comparison.json", info)
    return info


def _compared(
    client: Any,
    champion: Any,
    dataset: Dataset,
    table: pd.DataFrame,
    masks: Path,
    evaluation: Path,
    params: EvaluateParams,
    scratch: Path,
) -> dict[str, Any]:
    from dermaflow.predict import check_fit, predict_logits

    then = contracts.read_splits(registry.evidence(client, champion, "splits", scratch))
    test = table[table["split"] == "test"]
    trained = {"champion": seen_before(test, then), "challenger": seen_before(test, table)}
    rows = test[~trained["champion"] & ~trained["challenger"]].reset_index(drop=True)
    found: dict[str, Any] = {
        "predictions": pd.DataFrame(),
        "left_out": {name: int(seen.sum()) for name, seen in trained.items()},
    }
    if rows.empty:
        return {**found, "undefined": "each test image was in the training of one of the two"}
    model = registry.model_artifact(champion, scratch)
    try:
        check_fit(dataset, contracts.read_info(model, contracts.MODEL))
    except InputError as error:
        return {**found, "undefined": f"the champion does not fit these data: {error}"}
    logits = predict_logits(model, dataset, dataset.rows_of(rows["image_id"]), masks)
    columns = contracts.logit_columns(dataset.classes)
    theirs = pd.concat([rows[["image_id", "lesion_id", "split", "label"]], pd.DataFrame(logits, columns=columns)], axis=1)
    ours = contracts.read_predictions(evaluation)
    ours = ours[ours["image_id"].isin(rows["image_id"]) & (ours["split"] == "test")]
    difference = paired_difference(ours, theirs, dataset.classes, metric=METRIC, bootstrap=params.bootstrap, seed=params.seed)
    return {
        **found,
        "predictions": theirs,
        "images": len(rows),
        "lesions": int(rows["lesion_id"].nunique()),
        "difference": difference,
        "undefined": None,
    }
