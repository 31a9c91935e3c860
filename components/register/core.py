"""Register: a version of dermaflow-candidate that carries what it was made from, and the alias challenger."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dermaflow
from components.register.card import model_card
from dermaflow import contracts, registry
from dermaflow.artifacts import bytes_digest, json_digest, new_artifact, open_artifact, write_json
from dermaflow.dataset import Dataset
from dermaflow.lineage import environment
from dermaflow.params import RegisterParams, SplitParams, flat

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG = registry.TAG + "key"


@dataclass(frozen=True)
class Evidence:
    """The artifacts of a run that speak for its candidate, and how the run was asked for.

    `out_of_fold` are the Evaluation artifacts of all architectures' folds; empty where there were none.
    """

    dataset: Path
    report: Path
    splits_report: Path
    masks_and_plan_report: Path
    predictions_report: Path
    masks: Path
    splits: Path
    plan: Path
    model: Path
    evaluation: Path
    selection: Path
    comparison: Path
    explanation: Path
    params: str
    run_id: str
    source_digest: str
    pipeline_digest: str
    commit: str
    out_of_fold: tuple[Path, ...] = ()


def register(evidence: Evidence, params: RegisterParams, target: Path) -> dict[str, Any]:
    """Register the candidate, or find the version that the same model and evidence made before.

    Returns
    -------
    The content of registration.json: model, version, key, mlflow_run_id, created (False when it was there), facts.

    Raises
    ------
    InputError
        when the registry does not answer or an artifact is missing.
    """
    facts = gather_facts(evidence)
    client = registry.connect(params.tracking_uri)
    registry.ensure_model(
        client, registry.CANDIDATE_MODEL, "What the pipeline trains; the alias challenger is the newest candidate."
    )
    found = registry.find_version(client, registry.CANDIDATE_MODEL, KEY_TAG, facts["key"])
    version = str(found.version) if found else _create_version(client, evidence, facts, params)
    client.set_registered_model_alias(registry.CANDIDATE_MODEL, registry.CHALLENGER, version)
    info = {
        "model": registry.CANDIDATE_MODEL,
        "version": int(version),
        "alias": registry.CHALLENGER,
        "key": facts["key"],
        "created": found is None,
        "tracking_uri": params.tracking_uri,
        "mlflow_run_id": client.get_model_version(registry.CANDIDATE_MODEL, version).run_id,
        "facts": facts,
    }
    with new_artifact(target, contracts.REGISTRATION) as folder:
        write_json(folder / "registration.json", info)
    return info


def gather_facts(evidence: Evidence) -> dict[str, Any]:
    """What the version's tags, evidence and gates say, read from the artifacts themselves.

    `key` is the digest of the model's weights and of everything that judges it, so that registering the same model
    again finds the same version.
    """
    dataset = Dataset.open(evidence.dataset)
    model = contracts.read_info(evidence.model, contracts.MODEL)
    splits = contracts.read_info(evidence.splits, contracts.SPLITS)
    masks = contracts.read_info(evidence.masks, contracts.MASKS)
    explanation = contracts.read_info(evidence.explanation, contracts.EXPLANATION)
    metrics = contracts.read_metrics(evidence.evaluation)
    params = json.loads(evidence.params)
    pooled = out_of_fold(evidence)
    facts = {
        "architecture": model["architecture"],
        "profile": params["profile"],
        "synthetic": dataset.synthetic,
        "pipeline_check": model["pipeline_check"],
        "promotable_split": splits["promotable"],
        "mark": splits["mark"],
        "data": {
            **dataset.info["source"],
            "counts": dataset.info["counts"],
            "content_digest": dataset.content_digest,
            "layout_digest": dataset.info["layout_digest"],
        },
        "splits": {
            "artifact": open_artifact(evidence.splits, contracts.SPLITS).digest,
            "question": SplitParams.from_json(json.dumps(params["split"])).question,
            **{
                key: splits[key]
                for key in (
                    *("digest", "algorithm", "strategy", "seed", "shares", "folds", "counts", "excluded"),
                    *("leakage", "test_set", "previous"),
                )
            },
        },
        "comparison": contracts.read_info(evidence.comparison, contracts.COMPARISON),
        "plan_digest": open_artifact(evidence.plan, contracts.PLAN).digest,
        "masks": {key: masks.get(key) for key in ("algorithm", "mean_dice", "mean_dice_over_classes", "fallback_share")},
        "model": {
            key: model[key]
            for key in (
                "weights",
                "weights_digest",
                "parameters",
                "image_size",
                "channels",
                "masks",
                "classes",
                "input",
                "output",
                *("kept_epochs", "epochs", "dropout", "learning_rate", "tuned_from", "temperature"),
                *("mixup_space", "device", "environment", "training_key", "run"),
            )
        },
        "data_validation": _data_validation(evidence),
        "validation": metrics["validation"],
        "test": metrics["test"],
        "predictions_digest": open_artifact(evidence.evaluation, contracts.EVALUATION).files["predictions.parquet"],
        "out_of_fold": None if pooled is None else _out_of_fold(pooled),
        "selection": contracts.read_info(evidence.selection, contracts.SELECTION),
        "explanation": explanation,
        "params_digest": bytes_digest(evidence.params.encode()),
    }
    return {"key": _key(facts), **facts}


def out_of_fold(evidence: Evidence) -> Path | None:
    """The Evaluation artifact of the folds of the candidate's architecture; None where there were no folds."""
    candidate = contracts.read_info(evidence.model, contracts.MODEL)["architecture"]
    found = [path for path in evidence.out_of_fold if contracts.read_metrics(path)["architecture"] == candidate]
    return found[0] if found else None


def _out_of_fold(pooled: Path) -> dict[str, Any]:
    metrics = contracts.read_metrics(pooled)
    return {
        **metrics["out_of_fold"],
        "predictions_digest": open_artifact(pooled, contracts.EVALUATION).files["predictions.parquet"],
        **{name: metrics[name] for name in ("by_fold", "over_folds", "test")},
    }


def _data_validation(evidence: Evidence) -> dict[str, Any]:
    """What all gates on data found together, and each by itself; `suite_digest` names all suites that were asked."""
    reports = (evidence.report, evidence.splits_report, evidence.masks_and_plan_report, evidence.predictions_report)
    gates = [contracts.read_info(report, contracts.VALIDATION_REPORT) for report in reports]
    return {
        "success": all(gate["success"] for gate in gates),
        "suite": ", ".join(gate["suite"] for gate in gates),
        "suite_digest": json_digest([gate["suite_digest"] for gate in gates]),
        "blocking": [text for gate in gates for text in gate["blocking"]],
        "warnings": [text for gate in gates for text in gate["warnings"]],
        "gates": [
            {key: gate[key] for key in ("suite", "suite_digest", "success", "blocking", "warnings", "references")}
            for gate in gates
        ],
    }


def _key(facts: dict[str, Any]) -> str:
    """Digest of what is registered and of what judged it; where the files lay and when has no part in it."""
    told = {name: facts[name] for name in ("profile", "plan_digest", "predictions_digest", "test", "validation", "explanation")}
    told |= {"out_of_fold": facts["out_of_fold"]["predictions_digest"]} if facts["out_of_fold"] else {}
    return json_digest(
        {
            **told,
            "data": facts["data"]["content_digest"],
            "splits": facts["splits"]["digest"],
            "weights": facts["model"]["weights_digest"],
            "suite": facts["data_validation"]["suite_digest"],
        }
    )


def _create_version(client: MlflowClient, evidence: Evidence, facts: dict[str, Any], params: RegisterParams) -> str:
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from dermaflow.serving import LesionClassifier

    size, classes = facts["model"]["image_size"], facts["model"]["classes"]
    bundle = {
        "schema": 1,
        **facts,
        "intended_use": params.intended_use,
        "licence": facts["data"]["licence"],
        "params": json.loads(evidence.params),
        "run_id": evidence.run_id,
        "source_digest": evidence.source_digest,
        "pipeline_digest": evidence.pipeline_digest,
        "git": json.loads(evidence.commit),
        "environment": environment(),
    }
    experiment = registry.experiment_id(client, params.tracking_uri, params.experiment)
    with mlflow.start_run(experiment_id=experiment, run_name=evidence.run_id) as run:
        mlflow.log_params(flat(bundle["params"]))
        mlflow.log_metrics(_metrics(facts))
        _log_evidence(evidence, bundle)
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=LesionClassifier(),
            artifacts={"model": str(evidence.model)},
            code_paths=[str(Path(dermaflow.__file__).parent)],
            pip_requirements=_requirements(bundle["environment"]["libraries"]),
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))]),
                Schema([TensorSpec(np.dtype(np.float32), (-1, len(classes)))]),
            ),
        )
        created = client.create_model_version(
            registry.CANDIDATE_MODEL,
            source=logged.model_uri,
            run_id=run.info.run_id,
            model_id=logged.model_id,
            tags=_tags(bundle),
            description=model_card(bundle),
        )
    return str(created.version)


def _log_evidence(evidence: Evidence, bundle: dict[str, Any]) -> None:
    import mlflow

    folder = registry.EVIDENCE_FOLDER
    with tempfile.TemporaryDirectory() as scratch:
        write_json(Path(scratch, "evidence.json"), bundle)
        mlflow.log_artifacts(scratch, folder)
    reports = ("report", "splits_report", "masks_and_plan_report", "predictions_report")
    for name in (*reports, "evaluation", "selection", "comparison", "explanation", "splits", "plan"):
        mlflow.log_artifacts(str(getattr(evidence, name)), f"{folder}/{name}")
    pooled = out_of_fold(evidence)
    if pooled is not None:
        mlflow.log_artifacts(str(pooled), f"{folder}/out_of_fold")
    mlflow.log_artifact(str(evidence.dataset / "dataset.json"), f"{folder}/dataset")
    mlflow.log_artifact(str(evidence.masks / "masks.json"), f"{folder}/masks")


def _tags(bundle: dict[str, Any]) -> dict[str, str]:
    tags = {
        "key": bundle["key"],
        "run_id": bundle["run_id"],
        "architecture": bundle["architecture"],
        "profile": bundle["profile"],
        "synthetic": bundle["synthetic"],
        "pipeline_check": bundle["pipeline_check"],
        "mark": bundle["mark"],
        "data.name": bundle["data"]["name"],
        "data.content_digest": bundle["data"]["content_digest"],
        "data.dvc_revision": bundle["data"]["dvc_revision"],
        "data.images": bundle["data"]["counts"]["images"],
        "data.lesions": bundle["data"]["counts"]["lesions"],
        "data.source": bundle["params"]["data"]["source"],
        "data.source_digest": bundle["source_digest"],
        "splits.digest": bundle["splits"]["digest"],
        "splits.artifact": bundle["splits"]["artifact"],
        "splits.question": bundle["splits"]["question"],
        "splits.previous": bundle["splits"]["previous"]["digest"] if bundle["splits"]["previous"] else None,
        "test_set.version": bundle["splits"]["test_set"]["version"] if bundle["promotable_split"] else None,
        "test_set.digest": bundle["splits"]["test_set"]["digest"] if bundle["promotable_split"] else None,
        "plan.digest": bundle["plan_digest"],
        "params.digest": bundle["params_digest"],
        "pipeline.digest": bundle["pipeline_digest"],
        "predictions.digest": bundle["predictions_digest"],
        "model.weights_digest": bundle["model"]["weights_digest"],
        "weights.origin": bundle["model"]["weights"]["origin"],
        "weights.digest": bundle["model"]["weights"]["digest"],
        "git.commit": bundle["git"]["commit"],
        "git.dirty": bundle["git"]["dirty"],
        "licence": bundle["licence"],
        "intended_use": bundle["intended_use"],
        "test.balanced_accuracy": bundle["test"]["overall"]["balanced_accuracy"]["estimate"],
    }
    return {registry.TAG + name: _text(value) for name, value in tags.items()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _metrics(facts: dict[str, Any]) -> dict[str, float]:
    values = {}
    parts = {"validation": facts["validation"], "test": facts["test"]}
    parts |= {"out_of_fold": facts["out_of_fold"]["test"]} if facts["out_of_fold"] else {}
    for part, judged in parts.items():
        for name, interval in judged["overall"].items():
            for end in ("estimate", "low", "high"):
                if interval[end] is not None:
                    values[f"{part}_{name}" + ("" if end == "estimate" else f"_{end}")] = interval[end]
    return values


def _requirements(libraries: dict[str, str]) -> list[str]:
    """What loading the model needs; nothing else, so that a server's image stays small."""
    needed = ("mlflow", "tensorflow-cpu", "tensorflow", "keras", "numpy", "pandas", "opencv-python-headless")
    return [f"{name}=={libraries[name]}" for name in needed if name in libraries]
