"""The evidence bundle: everything that is said of a model version in one JSON document, by a published schema.

The models below are the rule; `evidence.schema.json` beside this file is written from them (`make schema`). A bundle is
held against them before anything is stored, and again by `dermaflow verify`. What is not known is null, never left out.

Gates are decided on after registration: they stand in `decision.json` beside the bundle and in the ledger, by `Decided`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dermaflow.errors import InputError

SCHEMA = 2  # 1 had no schema: neither limits nor what `components.register.origins` tells
SCHEMA_FILE = "evidence.schema.json"
Digest = Annotated[str, Field(pattern=r"^sha256(-rows)?:[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
_TOLD = 5  # faults of a document that are told; the rest is counted


class Part(BaseModel):
    """A part of the document whose fields are these and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Open(BaseModel):
    """A part that has at least these fields: a step may say more, which is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, use_attribute_docstrings=True)


class Interval(Part):
    """An estimate with its 95 % interval; null where it is not defined, and without bounds where lesions are too few."""

    estimate: float | None
    low: float | None
    high: float | None


class Counts(Open):
    """How many images and lesions, in all and per class."""

    images: Count
    lesions: Count
    images_per_class: dict[str, Count]
    lesions_per_class: dict[str, Count]


class Data(Open):
    """The images: where they come from, their licence, and what they are by digest."""

    name: str
    uri: str
    """Where they were read."""
    licence: str
    synthetic: bool
    """Whether a program drew them."""
    dvc_revision: str | None
    """Of the data in DVC; null where DVC does not hold them."""
    counts: Counts
    content_digest: Digest
    """Of images, labels and clinical values, whatever their order."""
    layout_digest: Digest
    """Of the bytes of the shards."""


class Audited(Part):
    """Test images with a relative in train, by kind, beside what a random split would come to."""

    test_images: Count
    same_lesion: Count
    near_duplicate: Count
    augmented: Count
    with_relative_in_train: Count
    share: Share
    random_share: Share


class TestSet(Open):
    """The test images: a numbered set that only grows."""

    version: Count
    digest: Digest
    images: Count
    lesions: Count


class Splits(Part):
    """Who is on which side, and the audit of it."""

    artifact: Digest
    question: Digest
    """Of what was asked of the split, as far as it decides who may be on which side."""
    digest: Digest
    """Of who is on which side."""
    algorithm: str
    strategy: str
    seed: int
    shares: dict[str, Share]
    folds: Count
    counts: dict[str, Counts]
    """By side: train, validation, test, excluded."""
    excluded: dict[str, Count]
    """Images on no side, by the reason."""
    leakage: dict[str, Audited]
    """The leakage audit, over `all` and for each class."""
    test_set: TestSet
    previous: dict[str, Any] | None
    """The splits whose sides were kept; null where there were none."""


class Algorithm(Part):
    """A way of working, by name and version."""

    name: str
    version: int


class Masks(Part):
    """How the lesions were found, and how well where experts had drawn them."""

    algorithm: Algorithm
    mean_dice: float | None
    mean_dice_over_classes: float | None
    fallback_share: float | None


class InitialWeights(Part):
    """What a backbone began with."""

    origin: str
    digest: Digest | None
    """Of the file; null where training began with random weights."""


class Model(Part):
    """The network: its file, its contract for images, and how it was trained."""

    file_digest: Digest
    """Of model.keras."""
    artifact: Digest
    """Of the whole Model artifact."""
    weights_digest: Digest
    """Of the weights, whatever the file around them."""
    weights: InitialWeights
    parameters: Count
    image_size: Count
    """Pixels of the side of the square that the network sees."""
    channels: Count
    masks: str
    classes: list[str]
    """In the order of the outputs."""
    input: str
    output: str
    kept_epochs: list[Count]
    """Whose weights are those of the model: one, or several that were averaged."""
    epochs: Count
    dropout: float
    learning_rate: float
    tuned_from: str | None
    """The first block of the backbone that was trained; null where all or none was."""
    temperature: float | None
    """That logits are divided by, fitted on validation images."""
    mixup_space: str | None
    device: dict[str, Any]
    environment: dict[str, Any]
    """Libraries, system and processor of the training."""
    training_key: str
    run: str | None
    """Of MLflow, in which the training was followed."""


class Suite(Part):
    """One gate on data: the expectations that were asked, and what did not hold."""

    suite: str
    suite_digest: Digest
    success: bool
    blocking: list[str]
    warnings: list[str]
    references: dict[str, str]


class DataValidation(Part):
    """All gates on data together, and each by itself."""

    success: bool
    suite: str
    suite_digest: Digest
    blocking: list[str]
    warnings: list[str]
    gates: list[Suite]


class ClassFigures(Part):
    """A class against the rest."""

    n_images: Count
    n_lesions: Count
    sensitivity: Interval
    specificity: Interval
    precision: Interval
    npv: Interval
    f1: Interval
    auroc: Interval
    auprc: Interval


class Confusion(Part):
    """Images by true class (row) and predicted class (column)."""

    classes: list[str]
    counts: list[list[Count]]


class Calibration(Open):
    """Whether probabilities mean what they say."""

    nll: Interval
    brier: Interval
    ece: Interval


class CalibrationStages(Part):
    """Before and after the temperature; null where there is none."""

    before: Calibration | None
    after: Calibration | None


class Abstention(Part):
    """Accuracy when the least sure are left to a person."""

    coverage: Share
    accuracy: Interval


class OperatingPoint(Part):
    """A question of yes or no, at the threshold that validation images chose."""

    threshold: float | None
    classes: list[str]
    n_images: Count
    n_lesions: Count
    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval
    auroc: Interval
    auprc: Interval


class Subgroup(Open):
    """Figures of a subgroup; of fewer lesions than `least_lesions` they are not defined."""

    n_images: Count
    n_lesions: Count
    balanced_accuracy: Interval
    accuracy: Interval


class Judged(Part):
    """What the model's answers to some images come to."""

    n_images: Count
    n_lesions: Count
    overall: dict[str, Interval]
    per_class: dict[str, ClassFigures]
    confusion: Confusion
    calibration: CalibrationStages
    abstention: list[Abstention]
    operating_points: dict[str, OperatingPoint]
    subgroups: dict[str, dict[str, Subgroup]]
    """By attribute (sex, age, site, way of diagnosis, lesion size) and value."""


class OutOfFold(Open):
    """What models of the same architecture say of images that they were held out from."""

    folds: Count
    predictions_digest: Digest
    test: Judged


class NamedVersion(Part):
    """A version of a registered model."""

    name: str
    version: int


class Comparison(Open):
    """The candidate beside the champion of then, on test images that neither was made with."""

    champion: NamedVersion | None
    metric: str
    images: Count
    lesions: Count
    difference: Interval | None
    undefined: str | None
    """Why there is no difference."""


class Ranked(Part):
    """An architecture of the run, as validation images judged it."""

    architecture: str
    validation: Interval
    pipeline_check: bool


class Selection(Open):
    """Which architecture became the candidate; test images had no part in it."""

    candidate: str
    ranking: list[Ranked]


class Additivity(Open):
    """Whether the contributions add up to the answer."""

    median: float | None
    limit: float


class Artefact(Part):
    """Classes for which what speaks lies off the lesion."""

    suspected: list[str]
    limit: float


class Explanation(Open):
    """What the maps of attribution are, and what they are worth."""

    method: dict[str, Any]
    n: Count
    seed: int
    selection_rule: str
    additivity: Additivity
    artefact: Artefact
    summary: dict[str, Any]
    checks: dict[str, Any]


class Git(Part):
    """The code: commit, and whether it had changes that no commit holds (dvc.lock aside); null where git does not know it."""

    commit: str | None
    dirty: bool | None


class Locked(Part):
    """A lock file."""

    file: str
    digest: Digest


class Step(Part):
    """One task of the run, as far as it had ended at registration."""

    task: str
    cached: bool
    wall_seconds: float | None
    """null where the cache answered: the work was done by an earlier run."""
    gpu_seconds: float | None
    """null where nothing says which device the task had."""
    cost: float | None
    """null: nothing tells what a step cost."""


class Bundle(Part):
    """Evidence of a model version, as `evidence/evidence.json` holds it."""

    model_config = ConfigDict(title="Dermaflow evidence bundle")

    schema_: Annotated[Literal[2], Field(alias="schema")]
    """Form of this document."""
    key: Digest
    """Of the model and of everything that judges it: registering the same again finds the same version."""
    architecture: str
    profile: str
    synthetic: bool
    pipeline_check: bool
    """Whether a part of the model is random."""
    promotable_split: bool
    mark: str | None
    """What nobody may overlook, such as the paper's protocol."""
    intended_use: str
    limits: list[str]
    """What the figures can not show."""
    licence: str
    """Of the images; it goes with whatever is made of them."""
    data: Data
    splits: Splits
    plan_digest: Digest
    masks: Masks
    model: Model
    data_validation: DataValidation
    validation: Judged
    test: Judged
    thresholds: dict[str, float | None]
    least_lesions: Count
    predictions_digest: Digest
    out_of_fold: OutOfFold | None
    comparison: Comparison
    selection: Selection
    explanation: Explanation
    params: dict[str, Any]
    """Every parameter of the run."""
    params_digest: Digest
    seeds: dict[str, int]
    run_id: str
    kfp_run_id: str | None
    """By which Kubeflow's API knows the run; null of local processes."""
    source_digest: Digest | None
    """Of every file of the source."""
    pipeline_digest: Digest | None
    """Of the pipeline's definition and of the code of every step."""
    compiled_pipeline_digest: Digest | None
    """Of the IR YAML as it was uploaded to Kubeflow; null of local processes, which run none."""
    git: Git
    lock: Locked | None
    """Every library by version and hash; null where the code runs from an image without it."""
    dvc_lock: Locked | None
    images: dict[str, str] | None
    """Container image of each step, by digest; null of local processes, and of images that were not released."""
    environment: dict[str, Any]
    """Libraries, system and processor of the registration."""
    fingerprint: Digest
    """Of device, libraries, system and processor of the training."""
    steps: list[Step] | None
    """null where the run's list of tasks is not at hand, as on a cluster."""
    artifacts: dict[str, Digest]
    """Digest of every artifact that speaks for the version."""


class Gate(Part):
    """What a policy asked, what was measured, and the verdict."""

    name: str
    estimate: float | None
    low: float | None
    high: float | None
    threshold: float | None
    verdict: Literal["pass", "fail", "waived", "not_applicable"]
    reason: str


class PolicyTold(Part):
    """The policy that decided, whole."""

    file: str
    digest: Digest
    content: dict[str, Any]


class Approvals(Part):
    """Who had to agree, and who had."""

    needed: Count
    given: list[str]
    four_eyes: bool
    requester: str | None


class Decided(Open):
    """A decision on a version: what was decided, by which policy, and every gate."""

    mode: str
    by: str
    candidate: dict[str, Any]
    commit: Git
    champion_before: NamedVersion | None
    comparison: Comparison | None
    gates: list[Gate]
    refused_by: list[str]
    waived: list[str]
    approvals: Approvals
    policy: PolicyTold
    test_set: dict[str, Any]


def schema() -> dict[str, Any]:
    """The published schema of a bundle: JSON Schema, draft 2020-12."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Bundle.model_json_schema(by_alias=True)}


def checked(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle, if it is of the published form.

    Raises
    ------
    InputError
        naming each field that is not as it should be; the artifacts that it was gathered from are then of another Dermaflow.
    """
    found = faults(bundle)
    if found:
        raise InputError(
            f"the evidence of run {bundle.get('run_id')} is not of the form of components/register/{SCHEMA_FILE}: "
            f"{'; '.join(found)}. Nothing was registered; run its steps again with this Dermaflow"
        )
    return dict(bundle)


def faults(document: Mapping[str, Any], model: type[BaseModel] = Bundle) -> list[str]:
    """What in a document is not as its schema says, each by the field; empty where all is."""
    try:
        model.model_validate_json(json.dumps(document))
    except ValidationError as error:
        found = [f"{'.'.join(map(str, fault['loc'])) or 'document'}: {fault['msg']}" for fault in error.errors()]
        more = [f"and {len(found) - _TOLD} more"] if len(found) > _TOLD else []
        return [*found[:_TOLD], *more]
    return []
