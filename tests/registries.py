"""Registries with candidates in them, made of the evidence of a finished run; and a policy that lets these pass."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from components.compare.core import compare
from components.promote.core import promote
from components.register.core import Evidence, register
from dermaflow import contracts, registry
from dermaflow.artifacts import new_artifact, read_json
from dermaflow.figures import figures
from dermaflow.ledger import Ledger, ledger_of
from dermaflow.params import EvaluateParams, Params, PromoteParams, RegisterParams, load_params
from dermaflow.policy import AtSpecificity, CalibrationBounds, ExplanationBounds, Minimum, Policy, SubgroupBounds, read_policy
from tests.workspace import ROOT

if TYPE_CHECKING:
    from mlflow import MlflowClient

COMMIT = json.dumps({"commit": "0" * 40, "dirty": False})
EVALUATE = EvaluateParams(bootstrap=200, specificity=0.9, seed=20240101)  # as tests.workspace.TINY
_NOTHING = Minimum(estimate=0.0)
_PLACES = {  # where MLflow keeps whole paths
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


def lenient_policy(**changes: Any) -> Policy:
    """A test policy: it allows synthetic images and asks for no accuracy and no more of maps than that they add up."""
    ours = read_policy(ROOT / "mlflow/policy.yaml")
    unasked = dict.fromkeys(set(ExplanationBounds.model_fields) - {"max_additivity_error"})
    update = {
        "allow_synthetic": True,
        "balanced_accuracy": _NOTHING,
        "auroc": _NOTHING,
        "melanoma_sensitivity": _NOTHING,
        "melanoma_at_specificity": AtSpecificity(specificity=0.9),
        "calibration": CalibrationBounds(max_ece=None),
        "worst_subgroup": SubgroupBounds(figure="balanced_accuracy", estimate=None, high=None),
        "explanation": ours.explanation.model_copy(update=unasked),
    }
    return ours.model_copy(update=update | changes)


@dataclass(frozen=True)
class Registry:
    """An embedded registry in a folder of its own: mlflow.db, mlartifacts/, ledger/ and policy.yaml."""

    folder: Path

    @property
    def uri(self) -> str:
        """Its tracking URI."""
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def policy(self) -> Path:
        """The policy that is in force."""
        return self.folder / "policy.yaml"

    @property
    def client(self) -> MlflowClient:
        """A client, as the code under test makes one."""
        return registry.connect(self.uri)

    @property
    def ledger(self) -> Ledger:
        """Its ledger, read anew."""
        return ledger_of(self.uri)

    @property
    def settings(self) -> RegisterParams:
        """What register and promote are told of it."""
        return RegisterParams(tracking_uri=self.uri, experiment="test", intended_use="tests")

    def params(self, *values: str) -> Params:
        """Parameters under which commands act on it."""
        return load_params("default", [*self.sets(), *values], root=ROOT)

    def sets(self) -> list[str]:
        """Values for `--set`."""
        return [f"register.tracking_uri={self.uri}", f"promote.policy={self.policy}", "promote.mode=enabled"]

    def write_policy(self, policy: Policy) -> None:
        """Put a policy in force."""
        self.policy.write_text(yaml.safe_dump(policy.model_dump(mode="json")))

    def champion(self) -> int | None:
        """The version that the alias is on."""
        found = registry.version_of(self.client, registry.PRODUCTION_MODEL, registry.CHAMPION)
        return None if found is None else int(found.version)

    def kinds(self) -> list[str]:
        """The kinds of the ledger's entries, in order."""
        return [entry.kind for entry in self.ledger.entries()]

    def copy(self, target: Path) -> Registry:
        """Another registry with the same content, files and all."""
        shutil.copytree(self.folder, target)
        with sqlite3.connect(target / "mlflow.db") as database:
            for table, column in _PLACES.items():
                database.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?)",  # noqa: S608 - names from above
                    (str(self.folder), str(target)),
                )
        database.close()
        _artifact_repos_cache.clear()  # MLflow keeps where a run's files lie by the run's id, which the copies share
        return Registry(target)

    def evidence(self, version: int = 1) -> Path:
        """The folder of a candidate's evidence."""
        run = self.client.get_model_version(registry.CANDIDATE_MODEL, str(version)).run_id
        return self.folder / "mlartifacts" / run / "artifacts" / "evidence"


def evidence_of(run: Path) -> Evidence:
    """What the version of a finished run was registered with.

    Parameters
    ----------
    run: its folder.
    """
    steps = {"dataset": "ingest/dataset", "report": "validate/report", "splits_report": "validate-splits/report",
             "masks_and_plan_report": "validate-masks-and-plan/report",
             "predictions_report": "validate-predictions/report", "masks": "segment/masks", "splits": "split/splits",
             "plan": "augment/plan", "model": "select/candidate", "evaluation": "select/evaluation",
             "selection": "select/selection", "comparison": "compare/comparison",
             "explanation": "explain/explanation"}  # fmt: skip
    given = read_json(run / "request.json")["arguments"]
    told = {name: given[name] for name in ("params", "source_digest", "pipeline_digest", "commit")}
    return Evidence(**{name: run / place for name, place in steps.items()}, run_id=run.name, **told)


def make_registry(empty: Path, target: Path, policy: Policy | None = None) -> Registry:
    """A registry without versions.

    Parameters
    ----------
    empty: a database that MLflow has made: that takes 3 s.
    """
    target.mkdir(parents=True)
    shutil.copy(empty, target / "mlflow.db")
    made = Registry(target)
    made.write_policy(policy or lenient_policy())
    return made


def run_promotion(made: Registry, evidence: Evidence, scratch: Path, mode: str = "enabled") -> dict[str, Any]:
    """What the pipeline does at its end: compare, register, decide."""
    compare(
        evidence.dataset, evidence.splits, evidence.masks, evidence.evaluation, EVALUATE, made.settings, scratch / "comparison"
    )
    evidence = replace(evidence, comparison=scratch / "comparison")
    register(evidence, made.settings, scratch / "registration")
    params = PromoteParams(mode=mode, policy=str(made.policy))
    places = scratch / "registration", scratch / "comparison"
    return promote(*places, read_policy(made.policy), COMMIT, params, made.settings, scratch / "decision")


def run_promotions(
    made: Registry, candidates: Sequence[Evidence], scratch: Path, mode: str = "enabled"
) -> list[dict[str, Any]]:
    """The same for one candidate after the other."""
    return [run_promotion(made, evidence, scratch / str(number), mode) for number, evidence in enumerate(candidates)]


def answering(evidence: Evidence, target: Path, right: float) -> Evidence:
    """The evidence of a model that answers the first `right` of each class's images rightly, the others wrongly."""
    metrics = read_json(evidence.evaluation / "metrics.json")
    classes, table = metrics["classes"], contracts.read_predictions(evidence.evaluation)
    rank = table.groupby(["split", "label"]).cumcount() / table.groupby(["split", "label"])["label"].transform("size")
    truth = np.array([classes.index(label) for label in table["label"]])
    answered = np.where(rank < right, truth, (truth + 1) % len(classes))
    table[contracts.logit_columns(classes)] = 5.0 * np.eye(len(classes), dtype=np.float32)[answered]
    metrics |= figures(table, classes, EVALUATE)
    with new_artifact(target, contracts.EVALUATION) as folder:
        shutil.copytree(evidence.evaluation, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("artifact.json"))
        table.to_parquet(folder / "predictions.parquet")
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return replace(evidence, evaluation=target)


def findings_of_fresh(count: int, empty: Path, evidence: Evidence, scratch: Path) -> list[str]:
    """What verify finds in so many fresh registries, in each of which a candidate was promoted, then a better one, then gone
    back to the first, and a gate was waived: nothing, since nobody touched them.

    Parameters
    ----------
    empty: as `make_registry` takes it.
    evidence: of a finished run.
    """
    from pipelines.acting import roll_back, waive
    from pipelines.verification import verify

    found = []
    first = replace(evidence, commit=COMMIT)
    for number in range(count):
        folder = scratch / str(number)
        made = make_registry(empty, folder / "registry")
        weak = replace(answering(first, folder / "weak", right=0.5 * number / count), run_id=f"weak-{number}")
        better = replace(answering(first, folder / "better", right=1.0), run_id=f"better-{number}")
        outcomes = [told["outcome"] for told in run_promotions(made, [weak, better], folder)]
        assert outcomes == ["promoted", "promoted"]
        waive("data_licence", "dermaflow-candidate/1", "as agreed", "2999-01-01", made.params())
        roll_back(None, "to see whether it holds", made.params())
        told = verify((), made.params(), every=True)
        assert told.versions == ["dermaflow/1", "dermaflow/2", "dermaflow-candidate/1", "dermaflow-candidate/2"]
        found += [f"{number}: {finding.name}, {finding.where}: {finding.detail}" for finding in told.findings]
        shutil.rmtree(folder)
    return found
