"""Register: a version of dermaflow-candidate that carries what it was made from, and the alias challenger."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dermaflow
from components.register import origins
from components.register.bundle import SCHEMA, checked
from components.register.card import model_card
from dermaflow import contracts, registry
from dermaflow.access import ensure_model, experiment_id, open_ledger, open_registry
from dermaflow.artifacts import (
    ARTIFACT_FILE,
    bytes_digest,
    file_digest,
    json_digest,
    new_artifact,
    open_artifact,
    read_json,
    write_json,
)
from dermaflow.champion import ENTRY_TAG, point, the_one_that_counts, version_made_for
from dermaflow.dataset import Dataset
from dermaflow.ledger import Entry, Ledger
from dermaflow.limits import limits
from dermaflow.lineage import environment
from dermaflow.params import RegisterParams, SplitParams, flat
from dermaflow.recorded import first_with_key, looks_at, registration_of
from dermaflow.records import files_of, model_files
from dermaflow.refusals import CI, refusals_told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_SERVED = (  # what dermaflow/serving.py imports beside its package, from the project's root on; it travels with the model
    *("components/__init__.py", "components/ingest/__init__.py", "components/ingest/decode.py", "components/ingest/scratch.py"),
    *("components/segment/__init__.py", "components/segment/kmeans_mask.py"),
)
BUNDLE = "evidence.json"  # by components/register/evidence.schema.json
FILES = "files.json"  # digest of every file of evidence and model; the ledger keeps its own
REGISTERED = "registered.json"  # what the version and its run were given: tags, description, metrics, parameters


@dataclass(frozen=True)
class Evidence:
    """The artifacts of a run that speak for its candidate, and how the run was asked for.

    `out_of_fold` are the Evaluation artifacts of all architectures' folds; empty where there were none. `job_id` is the run's
    on Kubeflow, `images` JSON of each step's container image by digest, `compiled_digest` that of the IR; empty where there are
    none.
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
    job_id: str = ""
    images: str = ""
    compiled_digest: str = ""

    @property
    def artifacts(self) -> dict[str, Path]:
        """Every artifact that speaks for the candidate, by its name here."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.type == "Path"}


@refusals_told(CI)
def register(evidence: Evidence, params: RegisterParams, target: Path, ledger: Ledger | None = None) -> dict[str, Any]:
    """Register the candidate, or find the version that the same model and evidence made before.

    Everything that speaks for it is stored first, then the ledger says so, then the version is made and the alias moved:
    what is cut short is made by whoever registers the same again, or by `dermaflow verify --repair`.

    Parameters
    ----------
    ledger: of the registry; by default the one beside an embedded registry.

    Returns
    -------
    The content of registration.json: model, version, key, mlflow_run_id, created (False when it was there), ledger_entry,
    looks (models that were judged on its test set so far), facts.

    Raises
    ------
    InputError
        when the registry does not answer or an artifact is missing.
    LedgerError
        when the ledger does not hold.
    """
    facts = gather_facts(evidence)
    client = open_registry(params.tracking_uri)
    ledger = ledger or open_ledger(params)
    ensure_model(client, registry.CANDIDATE_MODEL)
    _record_look(ledger, evidence, facts)
    entry = registration_of(ledger.entries(), facts["key"])
    created = entry is None
    if entry is None:
        entry = _record_registration(ledger, _store(client, evidence, facts, params))
    version = settle_candidate(client, entry)
    point(client, registry.CANDIDATE_MODEL, registry.CHALLENGER, version)
    info = {
        "model": registry.CANDIDATE_MODEL,
        "version": int(version.version),
        "alias": registry.CHALLENGER,
        "key": facts["key"],
        "created": created,
        "tracking_uri": params.tracking_uri,
        "mlflow_run_id": version.run_id,
        "ledger_entry": entry.number,
        "looks": looks_at(ledger.entries(), facts["splits"]["test_set"]["digest"]),
        "facts": facts,
    }
    with new_artifact(target, contracts.REGISTRATION) as folder:
        write_json(folder / "registration.json", info)
    return info


def settle_candidate(client: MlflowClient, entry: Entry) -> ModelVersion:
    """The version that a registration is about; made, of what its run holds, where it is not there."""
    found = version_made_for(client, registry.CANDIDATE_MODEL, entry)
    if found is None:
        with tempfile.TemporaryDirectory() as scratch:
            run_id, place = entry.body["mlflow_run_id"], f"{registry.EVIDENCE_FOLDER}/{REGISTERED}"
            given = read_json(Path(client.download_artifacts(run_id, place, scratch)))
        created = client.create_model_version(
            registry.CANDIDATE_MODEL,
            source=entry.body["source"],
            run_id=entry.body["mlflow_run_id"],
            model_id=entry.body["model_id"],
            tags=given["tags"] | {ENTRY_TAG: str(entry.number)},
            description=given["description"],
        )
        found = the_one_that_counts(client, created, entry)
    return found


def _record_look(ledger: Ledger, evidence: Evidence, facts: dict[str, Any]) -> None:
    """Every architecture of the run was judged on the test set, and a person sees all their figures."""
    test_set = facts["splits"]["test_set"]
    body = {
        "test_set": test_set["digest"],
        "images": test_set["images"],
        "lesions": test_set["lesions"],
        "models": sorted(entry["architecture"] for entry in facts["selection"]["ranking"]),
        "architecture": facts["architecture"],
        "predictions": facts["predictions_digest"],
        "key": facts["key"],
        "run_id": evidence.run_id,
    }
    ledger.append("evaluation", body, unless=lambda entries: first_with_key(entries, "evaluation", facts["key"]))


def _record_registration(ledger: Ledger, body: dict[str, Any]) -> Entry:
    """A registration, or that of another process that registered the same at the same time."""
    return ledger.append("registration", body, unless=lambda entries: registration_of(entries, body["key"]))


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
            "file_digest": open_artifact(evidence.model, contracts.MODEL).files["model.keras"],
            "artifact": open_artifact(evidence.model, contracts.MODEL).digest,
            **{
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
        },
        "data_validation": _data_validation(evidence),
        "validation": metrics["validation"],
        "test": metrics["test"],
        "thresholds": metrics["thresholds"],
        "least_lesions": metrics["least_lesions"],
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
            "schema": SCHEMA,
        }
    )


def _store(client: MlflowClient, evidence: Evidence, facts: dict[str, Any], params: RegisterParams) -> dict[str, Any]:
    """Store model and evidence in a new MLflow run; what the ledger is to say of them."""
    import mlflow

    bundle = checked(_bundle(evidence, facts, params))
    given = {
        "tags": _tags(bundle),
        "description": model_card(bundle),
        "metrics": _metrics(facts),
        "params": {name: str(value) for name, value in flat(bundle["params"]).items()},
    }
    experiment = experiment_id(client, params.tracking_uri, params.experiment)
    with mlflow.start_run(experiment_id=experiment, run_name=evidence.run_id) as run:
        mlflow.log_params(flat(bundle["params"]))
        mlflow.log_metrics(given["metrics"])
        logged = _log_model(evidence, bundle)
        files = _log_evidence(evidence, bundle, given, model_files(logged.model_uri))
    return {
        "model": registry.CANDIDATE_MODEL,
        "key": facts["key"],
        "mlflow_run_id": run.info.run_id,
        "source": logged.model_uri,
        "model_id": logged.model_id,
        "files": files,
        "run_id": evidence.run_id,
        "architecture": facts["architecture"],
        "synthetic": facts["synthetic"],
        "commit": bundle["git"],
        "digests": {
            "model": open_artifact(evidence.model, contracts.MODEL).digest,
            "predictions": facts["predictions_digest"],
            "data": facts["data"]["content_digest"],
            "splits": facts["splits"]["digest"],
            "test_set": facts["splits"]["test_set"]["digest"],
            "plan": facts["plan_digest"],
            "params": facts["params_digest"],
            "pipeline": evidence.pipeline_digest,
        },
    }


def _bundle(evidence: Evidence, facts: dict[str, Any], params: RegisterParams) -> dict[str, Any]:
    """The evidence bundle (components/register/bundle.py says what each field is)."""
    given, model = json.loads(evidence.params), facts["model"]
    per_class = facts["test"]["per_class"].values()
    return {
        "schema": SCHEMA,
        **facts,
        "intended_use": params.intended_use,
        "limits": limits(
            synthetic=facts["synthetic"],
            classes=len(model["classes"]),
            fewest_lesions=min(values["n_lesions"] for values in per_class),
        ),
        "licence": facts["data"]["licence"],
        "params": given,
        "seeds": origins.seeds(flat(given)),
        "run_id": evidence.run_id,
        "kfp_run_id": origins.kubeflow_run(evidence.run_id, evidence.job_id),
        "source_digest": evidence.source_digest or None,
        "pipeline_digest": evidence.pipeline_digest or None,
        "compiled_pipeline_digest": evidence.compiled_digest or None,
        "git": json.loads(evidence.commit),
        "lock": origins.locked(origins.LOCK),
        "dvc_lock": origins.locked(origins.DVC_LOCK),
        "images": origins.images_of(evidence.images),
        "environment": environment(),
        "fingerprint": origins.fingerprint(model["device"], model["environment"]),
        "steps": origins.steps(evidence.run_id, facts["architecture"], model["device"]),
        "artifacts": {name: read_json(path / ARTIFACT_FILE)["digest"] for name, path in evidence.artifacts.items()},
    }


def _log_model(evidence: Evidence, bundle: dict[str, Any]) -> Any:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    params, package = bundle["params"], Path(dermaflow.__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        for name in _SERVED:
            Path(scratch, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package.parent / name, Path(scratch, name))
        settings = Path(scratch, "serving.json")
        write_json(settings, {"segment": params["segment"], "max_pixels": params["data"]["max_pixels"]})
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "serving.py"),
            artifacts={"model": str(evidence.model), "settings": str(settings)},
            code_paths=[str(package), str(Path(scratch, "components"))],
            pip_requirements=_requirements(bundle["environment"]["libraries"]),
            signature=ModelSignature(
                Schema([ColSpec(DataType.binary, "image")]),
                Schema([ColSpec(DataType.double, name) for name in bundle["model"]["classes"]]),
            ),
        )


def _log_evidence(evidence: Evidence, bundle: dict[str, Any], given: dict[str, Any], model: dict[str, str]) -> str:
    """Log everything that speaks for the version; the digest of the list of it, which comes last."""
    import mlflow

    folder = registry.EVIDENCE_FOLDER
    reports = ("report", "splits_report", "masks_and_plan_report", "predictions_report")
    names = (*reports, "evaluation", "selection", "comparison", "explanation", "splits", "plan")
    folders = {name: getattr(evidence, name) for name in names}
    pooled = out_of_fold(evidence)
    folders |= {"out_of_fold": pooled} if pooled is not None else {}
    single = {"dataset": evidence.dataset / "dataset.json", "masks": evidence.masks / "masks.json"}
    files = {f"{name}/{part}": digest for name, path in folders.items() for part, digest in files_of(path).items()}
    files |= {f"{name}/{path.name}": file_digest(path) for name, path in single.items()}
    for name, path in folders.items():
        mlflow.log_artifacts(str(path), f"{folder}/{name}")
    for name, path in single.items():
        mlflow.log_artifact(str(path), f"{folder}/{name}")
    with tempfile.TemporaryDirectory() as scratch:
        for name, value in ((BUNDLE, bundle), (REGISTERED, given)):
            write_json(Path(scratch, name), value)
            files[name] = file_digest(Path(scratch, name))
        write_json(Path(scratch, FILES), {"evidence": files, "model": model})
        mlflow.log_artifacts(scratch, folder)
        return file_digest(Path(scratch, FILES))


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
    decoding = {name: version(name) for name in ("simplejpeg", "pillow")}
    return [f"{name}=={found}" for name, found in {**libraries, **decoding}.items() if name in (*needed, *decoding)]
