"""`dermaflow validate`: any source or artifact, judged by a suite, without leaving more behind than the report."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.validate.core import NEEDS, REFERENCES, Subject, check, check_listing, suite_names
from dermaflow import contracts
from dermaflow.artifacts import ARTIFACT_FILE, open_artifact, read_json
from dermaflow.dataset import KIND
from dermaflow.errors import InputError
from dermaflow.params import Params, ValidateParams

SUITE_OF = {
    KIND: "manifest",
    contracts.SPLITS: "splits",
    contracts.PLAN: "plan",
    contracts.MASKS: "masks",
    contracts.EVALUATION: "predictions",
}
FIELD_OF = {KIND: "dataset", contracts.EVALUATION: "evaluations"}  # of a Subject; the other kinds are called as they are
STEP_OF = {"dataset": "ingest", "splits": "split"}  # where a run keeps what other artifacts belong to


def check_data(
    data: str, params: Params, out: Path, suite: str | None = None, reference: Path | None = None, beside: Sequence[Path] = ()
) -> dict[str, Any]:
    """Judge DATA and write the report, with Data Docs, to `out`.

    A source is judged in two stages: by its metadata and list of files, within seconds; and, if nothing blocks there, by
    its images, which are ingested into a temporary Dataset.

    Parameters
    ----------
    data: a source of images (folder, .zip, s3://..., doi:...), or the folder of an artifact.
    suite: by default that of the artifact's kind; manifest for a source.
    reference: an earlier Dataset (suite manifest) or Splits (suite splits) to compare with.
    beside: further artifacts that DATA belongs to (its Dataset, its Splits), where they do not lie beside it.

    Returns
    -------
    The content of validation.json.

    Raises
    ------
    InputError
        when DATA, the suite, the reference or an artifact that DATA belongs to can not be used.
    """
    kind = _kind(Path(data))
    suite = suite or SUITE_OF.get(kind or "", "manifest")
    if suite not in suite_names():
        raise InputError(f"unknown suite {suite!r}; allowed: {', '.join(suite_names())}")
    wanted = _with_reference(params.validate_, suite, reference)
    if kind is None:
        if suite != "manifest":
            raise InputError(f"DATA {data} is no finished artifact, so suite {suite!r} can not judge it; allowed: manifest")
        return _check_source(data, params, wanted, out)
    if SUITE_OF.get(kind) != suite:
        allowed = next(name for name, of in SUITE_OF.items() if of == suite)
        raise InputError(f"DATA {data} is an artifact of kind {kind!r}, which suite {suite!r} can not judge; give a {allowed}")
    return check(_subject(Path(data), kind, suite, beside), wanted, out, (suite,))


def _kind(path: Path) -> str | None:
    """The kind of an artifact's folder; None for anything else."""
    return str(read_json(path / ARTIFACT_FILE)["kind"]) if (path / ARTIFACT_FILE).is_file() else None


def _with_reference(params: ValidateParams, suite: str, reference: Path | None) -> ValidateParams:
    if reference is None:
        return params
    if suite not in REFERENCES:
        raise InputError(f"--reference {reference}: suite {suite!r} compares with nothing; allowed: {', '.join(REFERENCES)}")
    name, kind = REFERENCES[suite]
    open_artifact(reference, kind)
    return params.model_copy(update={name: str(reference)})


def _check_source(data: str, params: Params, wanted: ValidateParams, out: Path) -> dict[str, Any]:
    from components.ingest.source import open_source

    told = params.data.model_copy(update={"source": data, "subset": None, "max_reject_share": 1.0})
    source = open_source(told)
    report = check_listing(source.metadata, source.refused, source.classes, wanted, out)
    if not report["success"]:
        return report
    from components.ingest.core import ingest  # not before: a source that is refused needs no decoder

    with tempfile.TemporaryDirectory() as scratch:
        dataset = Path(scratch, "dataset")
        ingest(told, dataset)
        return check(Subject(dataset), wanted, out)


def _subject(data: Path, kind: str, suite: str, beside: Sequence[Path]) -> Subject:
    given = {_field(found): path for path in beside if (found := _kind(path))}
    unknown = [str(path) for path in beside if _kind(path) is None]
    if unknown:
        raise InputError(f"--with {unknown[0]} is not a finished artifact; give the folder of a Dataset or of Splits")
    given[_field(kind)] = data
    for name in NEEDS[suite]:
        if name not in given:
            given[name] = _find_beside(data, name, suite)
    return Subject(
        given["dataset"],
        given.get("splits"),
        given.get("plan"),
        given.get("masks"),
        (given["evaluations"],) if "evaluations" in given else (),
    )


def _field(kind: str) -> str:
    return FIELD_OF.get(kind, kind)


def _find_beside(data: Path, name: str, suite: str) -> Path:
    """The artifact of a name that lies beside DATA, or in the run that DATA is of."""
    above = [data.absolute().parent, *data.absolute().parent.parents][:4]
    places = [place for folder in above for place in (folder / name, folder / STEP_OF.get(name, name) / name)]
    for place in places:
        if _field(_kind(place) or "") == name:
            return place
    raise InputError(f"suite {suite!r} needs the {name} that {data} belongs to, and none lies beside it; name it by --with DIR")
