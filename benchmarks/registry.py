"""verify, audit, models and the ledger's chain in a large registry, each against what it can not do without.

    python benchmarks/registry.py [--run DIR] [--predictions 2000] [--resamples 2000] [--versions 1000] [--entries 10000]
                                  [--rounds 3] [--json]

The version that is verified has so many drawn test predictions and as many of validation; it is made of the artifacts of a
finished run (--run; without one a small run of synthetic images is made, which takes minutes), and was judged by a policy.
The other registry has so many versions and its ledger so many entries. Seconds are those after imports, the median of
--rounds, each in a process of its own.

    verify    `dermaflow verify NAME/VERSION`, without replay       figures   the evaluation step's figures of the predictions
    audit     `dermaflow audit NAME/VERSION`                        figures   the same
    models    `dermaflow models`, the table printed                 mlflow    search_model_versions of both models, as it comes
    chain     the ledger read and followed, of all entries          files     every entry's file read and hashed
    quarter   the same of a quarter of the entries
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluate import CLASSES, predictions
from measured import ROOT, contestant, run, tell

from dermaflow.lineage import machine
from dermaflow.progress import set_environment

MOST = {
    "seconds, verify": 5.0,
    "seconds, audit": 10.0,
    "seconds, models": 3.0,
    "chain, seconds of an entry / those of a quarter": 1.5,
}
MODEL = "dermaflow-candidate/1"
BASELINES = {"verify": "figures", "audit": "figures", "models": "mlflow", "chain": "files"}


# --- what is measured on ---


def build(place: Path, source: Path | None, judged: int, resamples: int, versions: int, entries: int) -> None:
    """Both registries below a folder: `judged` and `large`, and an empty one, by which contestants import."""
    from dermaflow import registry
    from tests.registries import COMMIT, Registry, evidence_of, make_registry, run_promotion

    new = place / "new" / "mlflow.db"
    registry.connect(f"sqlite:///{new}")
    for name in ("empty", "judged", "large"):
        make_registry(new, place / name)
    evidence = replace(evidence_of(source or small_run(place / "run")), commit=COMMIT)
    made = with_predictions(evidence, place / "evaluation", judged, resamples)
    run_promotion(Registry(place / "judged"), made, place / "decided", mode="dry_run")
    populate(Registry(place / "large"), versions, entries)


def small_run(folder: Path) -> Path:
    """The folder of a finished run of one architecture on a few synthetic images."""
    from dermaflow.phantom import draw_phantoms
    from tests.workspace import TINY, make_workspace, sets

    made = make_workspace(folder)
    draw_phantoms(made.path / "data" / "phantom", images=84, seed=7)
    told = made.json("run", "--profile", "phantom", *sets(*TINY, "train.architectures=[cnn]"))
    return made.path / "runs" / str(told["run_id"])


def with_predictions(evidence: Any, target: Path, images: int, resamples: int) -> Any:
    """The evidence of a model that was judged on so many drawn test images, and on as many of validation."""
    import pandas as pd

    from dermaflow import contracts
    from dermaflow.artifacts import new_artifact, read_json, write_json
    from dermaflow.figures import figures
    from dermaflow.params import EvaluateParams

    params = json.loads(evidence.params)
    params["evaluate"]["bootstrap"] = resamples
    test = predictions(images)
    names = {name: "validation-" + test[name] for name in ("image_id", "lesion_id")}
    table = pd.concat([test, test.assign(split="validation", **names)], ignore_index=True)
    metrics = read_json(evidence.evaluation / contracts.METRICS_FILE)
    metrics |= figures(table, CLASSES, EvaluateParams.model_validate(params["evaluate"]))
    with new_artifact(target, contracts.EVALUATION) as folder:
        shutil.copytree(evidence.evaluation, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("artifact.json"))
        table.to_parquet(folder / "predictions.parquet")
        write_json(folder / contracts.METRICS_FILE, metrics)
    return replace(evidence, evaluation=target, params=json.dumps(params))


def populate(made: Any, versions: int, entries: int) -> None:
    """Versions with the tags of real ones, and a chain of entries: a registration of each, and looks at the test set."""
    from dermaflow import registry
    from dermaflow.champion import ENTRY_TAG

    write_chain(made.folder / "ledger", versions, entries)
    client = made.client
    registry.ensure_model(client, registry.CANDIDATE_MODEL, "of a benchmark")
    tags = {f"dermaflow.fact.{number}": "sha256:" + 64 * "0" for number in range(36)}
    tags |= {"dermaflow.architecture": "cnn", "dermaflow.test.balanced_accuracy": "0.7", "dermaflow.data.name": "drawn"}
    for number in range(versions):
        client.create_model_version(
            registry.CANDIDATE_MODEL, f"file://{made.folder}", tags=tags | {ENTRY_TAG: str(number + 1)}, description=3000 * "x"
        )


def write_chain(folder: Path, registrations: int, entries: int) -> None:
    """A ledger's files, as `Ledger.append` would leave them, without waiting for the disk after each."""
    from dermaflow.artifacts import json_digest
    from dermaflow.ledger import FORMAT, NOTHING

    folder.mkdir()
    previous = NOTHING
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).isoformat(timespec="microseconds")
    for number in range(1, entries + 1):
        key = f"sha256:{number:064x}"
        look = {"test_set": key, "images": 1000, "lesions": 740, "models": ["cnn"], "key": key, "predictions": key}
        rest: dict[str, Any] = {
            "format": FORMAT,
            "number": number,
            "previous": previous,
            "kind": "registration" if number <= registrations else "evaluation",
            "at": at,
            "actor": "benchmark",
            "body": {**look, "digests": dict.fromkeys(("model", "data", "splits", "test_set", "plan"), key)},
            "nonce": f"{number:016x}",
        }
        previous = json_digest(rest)
        text = json.dumps({**rest, "digest": previous}, indent=1, sort_keys=True) + "\n"
        (folder / f"{number:08d}.json").write_text(text)


# --- contestants: functions of the folder that return the work, everything imported ---


def opened(place: Path, name: str) -> Any:
    """The parameters of a registry; libraries that opening one and judging predictions take are imported before."""
    import mlflow.artifacts
    import pyarrow.parquet
    import scipy.optimize  # noqa: F401 - what fits the temperature, before the clock runs

    from pipelines.verification import verify
    from tests.registries import Registry

    assert mlflow.artifacts
    assert pyarrow.parquet
    verify((), Registry(place / "empty").params())
    return Registry(place / name).params()


def verify_version(place: Path) -> Any:
    """`dermaflow verify`; tells the findings."""
    from pipelines.verification import verify

    params = opened(place, "judged")
    return lambda: [finding.name for finding in verify((MODEL,), params).findings]


def audit_version(place: Path) -> Any:
    """`dermaflow audit`; tells the findings."""
    from pipelines.audit import export

    params = opened(place, "judged")
    target = Path(tempfile.mkdtemp(dir=place)) / "dossier"
    return lambda: [finding.name for finding in export(MODEL, params, target).findings]


def compute_figures(place: Path) -> Any:
    """The figures that verify and audit compute again, as the evaluation step does."""
    import pandas as pd
    import scipy.optimize  # noqa: F401 - as above

    from dermaflow.artifacts import read_json
    from dermaflow.figures import figures
    from dermaflow.params import EvaluateParams

    (bundle,) = (read_json(path) for path in (place / "judged").rglob("evidence/evidence.json"))
    settings = EvaluateParams.model_validate(bundle["params"]["evaluate"])
    table = pd.read_parquet(place / "evaluation" / "predictions.parquet")
    return lambda: len(figures(table, CLASSES, settings))


def list_models(place: Path) -> Any:
    """`dermaflow models`; tells how many lines it prints."""
    from unittest.mock import patch

    from pipelines.cli import app

    params = opened(place, "large")

    def go() -> int:
        printed = io.StringIO()
        with redirect_stdout(printed), patch("pipelines.cli.load_params", lambda *_: params):
            app(["models"], standalone_mode=False)
        return len(printed.getvalue().splitlines())

    return go


def search_mlflow(place: Path) -> Any:
    """What MLflow takes to tell all versions of both models."""
    from dermaflow import registry
    from tests.registries import Registry

    opened(place, "large")
    client = Registry(place / "large").client
    names = (registry.PRODUCTION_MODEL, registry.CANDIDATE_MODEL)
    return lambda: sum(len(client.search_model_versions(f"name = '{name}'")) for name in names)


def follow_chain(place: Path, share: int = 1) -> Any:
    """The ledger read and followed; tells entries and faults."""
    from dermaflow.ledger import Ledger

    folder = place / "large" / "ledger"
    if share > 1:
        part = Path(tempfile.mkdtemp(dir=place))
        names = sorted(folder.iterdir())
        for path in names[: len(names) // share]:
            shutil.copy(path, part)
        folder = part
    ledger = Ledger(str(folder))

    def go() -> list[int]:
        entries, faults = ledger.look()
        return [len(entries), len(faults)]

    return go


def follow_quarter(place: Path) -> Any:
    """The same of the first quarter of the entries."""
    return follow_chain(place, 4)


def hash_files(place: Path) -> Any:
    """The least that whoever follows the chain does: read each file, and hash its bytes."""
    folder = place / "large" / "ledger"
    return lambda: len({hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())})


CONTESTANTS = {
    "verify": verify_version,
    "audit": audit_version,
    "figures": compute_figures,
    "models": list_models,
    "mlflow": search_mlflow,
    "chain": follow_chain,
    "quarter": follow_quarter,
    "files": hash_files,
}


def compare(source: Path | None, judged: int, resamples: int, versions: int, entries: int, rounds: int) -> dict[str, Any]:
    """Build the registries, time each contestant, and hold what it said against what it should say."""
    with tempfile.TemporaryDirectory(prefix="dermaflow-benchmark-") as scratch:
        place = Path(scratch)
        build(place, source, judged, resamples, versions, entries)
        found = {name: [run(__file__, "--contestant", name, "--place", scratch) for _ in range(rounds)] for name in CONTESTANTS}
    expected = {"verify": [], "audit": [], "chain": [entries, 0], "quarter": [entries // 4, 0], "mlflow": versions}
    wrong = {name: found[name][0]["result"] for name, value in expected.items() if found[name][0]["result"] != value}
    if wrong or found["models"][0]["result"] < versions:
        raise SystemExit(f"not what was to be found: {wrong or found['models'][0]['result']}")
    seconds = {name: sorted(each["seconds"] for each in told)[len(told) // 2] for name, told in found.items()}
    linear = (seconds["chain"] / entries) / (seconds["quarter"] / (entries // 4))
    return {
        "machine": machine(),
        "test_predictions": judged,
        "resamples": resamples,
        "versions": versions,
        "entries": entries,
        "figures": {
            **{f"seconds, {name}": round(value, 3) for name, value in seconds.items()},
            "chain, seconds of an entry / those of a quarter": round(linear, 2),
        },
        "peak_anonymous_mib": {name: max(each["peak_anonymous_mib"] for each in told) for name, told in found.items()},
        "ratios": {f"{name} / {base}": round(seconds[name] / seconds[base], 2) for name, base in BASELINES.items()},
        "bounds": MOST,
    }


def main() -> int:
    """Print the comparison; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, metavar="DIR", help="a finished run's folder (default: a small run is made)")
    parser.add_argument("--predictions", type=int, default=2000, help="test images of the version (default: 2000)")
    parser.add_argument("--resamples", type=int, default=2000, help="resamples of lesions (default: 2000)")
    parser.add_argument("--versions", type=int, default=1000, help="versions of the large registry (default: 1000)")
    parser.add_argument("--entries", type=int, default=10000, help="entries of its ledger (default: 10000)")
    parser.add_argument("--rounds", type=int, default=3, help="of each, of which the median counts (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_environment()  # as the command does
    sys.path.insert(0, str(ROOT))
    if options.contestant:
        contestant(CONTESTANTS[options.contestant](options.place))
        return 0
    sizes = options.predictions, options.resamples, options.versions, options.entries, options.rounds
    told = compare(options.run, *sizes)
    told["missed"] = [name for name, most in MOST.items() if told["figures"][name] > most]
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"a version with {told['test_predictions']} test predictions and {told['resamples']} resamples; a registry of")
        print(f"{told['versions']} versions and {told['entries']} entries; on {told['machine']}")
        tell(told, ("figures", "peak_anonymous_mib", "ratios"), {}, MOST)
    return 1 if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
