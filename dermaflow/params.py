"""Every parameter of the pipeline: its type, its bounds and its meaning. Values live in params.yaml and params/*.yaml.

All models are frozen and forbid unknown keys; an error names the key, its value and what is allowed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dermaflow.architectures import ARCHITECTURES, WHOLE
from dermaflow.artifacts import json_digest
from dermaflow.classes import HAM10000_CLASSES
from dermaflow.errors import InputError
from dermaflow.yaml_files import parse_yaml

PARAMS_FILE = Path("params.yaml")
OVERLAYS = Path("params")


def _known_architecture(name: str) -> str:
    if name not in ARCHITECTURES:
        raise ValueError(f"allowed: {', '.join(ARCHITECTURES)}")
    return name


def _known_class(name: str) -> str:
    if name not in HAM10000_CLASSES:
        raise ValueError(f"allowed: {', '.join(HAM10000_CLASSES)}")
    return name


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names must not repeat")
    return values


ArchitectureName = Annotated[str, AfterValidator(_known_architecture)]
ClassName = Annotated[str, AfterValidator(_known_class)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """One section of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_json(self) -> str:
        """The section as one line of JSON, in a fixed order: what a pipeline step receives."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The section that `to_json` wrote."""
        return cls.model_validate_json(text)


class Subset(Section):
    """Which lesions of the source to take, by whole lesions; null takes all."""

    images_per_class: Annotated[int, Field(ge=1)]
    keep_all: tuple[ClassName, ...] = ()
    seed: int = 20240101


class DataParams(Section):
    source: Annotated[str, Field(min_length=1)]
    repository: Annotated[str, Field(pattern=r"^https?://")]
    image_size: Annotated[int, Field(ge=32, le=1024)]
    resize: Literal["stretch", "crop", "pad"]
    subset: Subset | None
    max_reject_share: Share
    max_withdrawn_share: Share
    erase_withdrawn: bool
    max_pixels: Annotated[int, Field(ge=1024)]
    max_file_bytes: Annotated[int, Field(ge=1024)]
    patience_seconds: Annotated[float, Field(ge=0)]
    shard_megabytes: Annotated[float, Field(gt=0, le=5000)]
    licence: Annotated[str, Field(min_length=1)]


class ValidateParams(Section):
    min_lesions_per_class: Annotated[int, Field(ge=1)]
    max_unknown_share: Share
    max_reject_share: Share
    max_artefact_gap: Share
    max_split_deviation: Share
    max_fallback_share: Share
    drift_ks: Annotated[float, Field(gt=0, le=1)]
    drift_psi: Annotated[float, Field(gt=0)]
    drift_p: Annotated[float, Field(gt=0, le=1)]
    reference: str
    reference_splits: str


class SegmentParams(Section):
    working_size: Annotated[int, Field(ge=32, le=512)]
    min_area_share: Share
    max_area_share: Share
    min_dice: Share

    @model_validator(mode="after")
    def _ordered(self) -> SegmentParams:
        if self.min_area_share >= self.max_area_share:
            raise ValueError("min_area_share must be below max_area_share")
        return self


class SplitParams(Section):
    strategy: Literal["lesion", "random"]
    train: Annotated[float, Field(gt=0, lt=1)]
    validation: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]
    folds: Annotated[int, Field(ge=0, le=20)]
    seed: int
    previous: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> SplitParams:
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError(
                f"train, validation and test must add up to 1; they are {self.train:g} + {self.validation:g} + {self.test:g}"
            )
        if self.folds == 1:
            raise ValueError("folds must be 0 (none) or at least 2")
        if self.folds and self.strategy == "random":
            raise ValueError("folds are by lesion; use strategy lesion, or folds 0")
        return self

    @property
    def question(self) -> str:
        """Digest of what is asked of the split, whatever it goes on from."""
        return json_digest(self.model_dump(mode="json", exclude={"previous"}))


class AugmentParams(Section):
    balance: Literal["none", "sampler", "square_root", "target_per_class", "balanced_mixup"]
    targets: dict[str, Annotated[int, Field(ge=1)]]
    before_split: bool
    flips: bool
    right_angle_turns: bool
    scale: Annotated[float, Field(ge=0, le=0.3)]
    brightness: Annotated[float, Field(ge=0, le=0.5)]
    hue: Annotated[float, Field(ge=0, le=0.1)]
    feature_views: Annotated[int, Field(ge=1, le=8)]
    materialize: bool
    seed: int

    @property
    def changes(self) -> bool:
        """Whether an image is drawn otherwise than as it is."""
        return self.flips or self.right_angle_turns or bool(self.scale or self.brightness or self.hue)

    @model_validator(mode="after")
    def _one_remedy(self) -> AugmentParams:
        if (self.balance == "target_per_class") != bool(self.targets):
            raise ValueError(
                f"balance is {self.balance!r} and targets {'are given' if self.targets else 'are empty'}; targets say how "
                "often each class is drawn an epoch with balance target_per_class, and with no other: one remedy at a time"
            )
        if self.before_split and self.balance != "target_per_class":
            raise ValueError(
                f"before_split is true with balance {self.balance}; before the split classes are balanced to targets: use "
                "balance target_per_class with targets, or before_split false"
            )
        return self


class MixupParams(Section):
    alpha: Annotated[float, Field(ge=0, le=8)]
    space: Literal["pixels", "features"]
    fixed_mixes: Annotated[int, Field(ge=0, le=1_000_000)]

    @model_validator(mode="after")
    def _mixes_pixels(self) -> MixupParams:
        if self.fixed_mixes and (self.space == "features" or not self.alpha):
            raise ValueError(
                f"fixed_mixes is {self.fixed_mixes} with space {self.space} and alpha {self.alpha:g}; fixed mixes are of "
                "pixels: use space pixels and an alpha above 0, or fixed_mixes 0"
            )
        return self

    def space_of(self, *, frozen: bool) -> str:
        """Where a network's images are mixed: off, pixels, features, or in so many fixed mixes of pixels."""
        if not self.alpha:
            return "off"
        if frozen and self.fixed_mixes:
            return f"pixels, {self.fixed_mixes} fixed mixes"
        return "features" if frozen else self.space

    def require_fit(self, architecture: str) -> None:
        """Raise InputError when features are to be mixed, but the architecture is trained whole, from pixels."""
        if self.space == "features" and not ARCHITECTURES[architecture].pretrained:
            raise InputError(
                f"mixup.space=features needs a frozen backbone, but {architecture} is trained whole; use mixup.space=pixels"
            )

    def require_balance(self, augment: AugmentParams) -> None:
        """Raise InputError when classes are to be balanced by MixUp, and MixUp is off."""
        if augment.balance == "balanced_mixup" and not self.alpha:
            raise InputError("augment.balance=balanced_mixup mixes, but mixup.alpha is 0; set mixup.alpha, say to 0.2")


Loss = Literal["cross_entropy", "class_weights", "logit_adjustment"]
Monitor = Literal["balanced_accuracy", "auroc"]


class FineTuneParams(Section):
    """The second stage of transfer learning: after its head, a pretrained network is tuned from a block on."""

    blocks: dict[ArchitectureName, Annotated[str, Field(min_length=1)]]
    epochs: Annotated[int, Field(ge=1, le=1000)]
    members: Annotated[int, Field(ge=1, le=8)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warm_up: Share

    @model_validator(mode="after")
    def _known_blocks(self) -> FineTuneParams:
        for name, block in self.blocks.items():
            allowed = ("none", *ARCHITECTURES[name].blocks, WHOLE)
            if not ARCHITECTURES[name].pretrained and block != "none":
                raise ValueError(f"blocks.{name} is {block!r}, but {name} has no published weights and is trained whole")
            if ARCHITECTURES[name].pretrained and block not in allowed:
                raise ValueError(f"blocks.{name} is {block!r}; allowed: {', '.join(allowed)}")
        return self


class TrainParams(Section):
    architectures: Annotated[tuple[ArchitectureName, ...], Field(min_length=1), AfterValidator(_unique)]
    weights: dict[ArchitectureName, Annotated[str, Field(min_length=1)]]
    epochs: Annotated[int, Field(ge=1, le=1000)]
    head_epochs: Annotated[int, Field(ge=1, le=1000)]
    fine_tune: FineTuneParams
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    learning_rates: dict[ArchitectureName, Annotated[float, Field(gt=0, le=1)]]
    dropout: dict[ArchitectureName, Annotated[float, Field(ge=0, lt=1)]]
    loss: Loss
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    average: Annotated[float, Field(ge=0, lt=1)]
    adjustment: Literal["none", "validation"] | Annotated[float, Field(ge=0, le=2)]
    symmetries: Literal[1, 2, 4, 8]
    monitor: Monitor
    patience: Annotated[int, Field(ge=0, le=1000)]
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
    masks: Literal["none", "crop", "channel", "background_off"]
    checkpoints: str
    checkpoint_seconds: Annotated[float, Field(ge=0)]
    seed: int

    @model_validator(mode="after")
    def _weights_fit(self) -> TrainParams:
        for name, value in self.weights.items():
            if value != "none" and not ARCHITECTURES[name].pretrained:
                raise ValueError(f"weights.{name} is {value!r}, but {name} has no published weights; allowed: none")
        return self

    def weights_origin(self, architecture: str) -> str:
        """Where an architecture's initial weights come from: none, imagenet, a path or `s3://`."""
        return self.weights.get(architecture, "none")

    def dropout_of(self, architecture: str) -> float:
        """The dropout rate before an architecture's head."""
        return self.dropout.get(architecture, ARCHITECTURES[architecture].dropout)

    def learning_rate_of(self, architecture: str) -> float:
        """Adam's rate, of an architecture trained whole or of its head."""
        return self.learning_rates.get(architecture, self.learning_rate)

    def block_of(self, architecture: str) -> str | None:
        """The block from which on a pretrained architecture is tuned; WHOLE for every layer, None for its head alone."""
        block = self.fine_tune.blocks.get(architecture, "none")
        return None if block == "none" else block

    def require_balance(self, augment: AugmentParams) -> None:
        """Raise InputError when both the draws and the loss balance the classes, unless the draws do so by half."""
        if self.loss != "cross_entropy" and augment.balance not in {"none", "square_root"}:
            raise InputError(
                f"train.loss={self.loss} balances the classes, and so does augment.balance={augment.balance}: one remedy at a "
                "time; use train.loss=cross_entropy, or augment.balance=none, or square_root, which leaves half to the loss"
            )


class EvaluateParams(Section):
    bootstrap: Annotated[int, Field(ge=100, le=100_000)]
    specificity: Annotated[float, Field(ge=0.5, lt=1)]
    seed: int


class ExplainParams(Section):
    images: Annotated[int, Field(ge=1, le=500)]
    background: Annotated[int, Field(ge=1, le=64)]
    seed: int


class RegisterParams(Section):
    tracking_uri: Annotated[str, Field(min_length=1)]
    experiment: Annotated[str, Field(min_length=1)]
    intended_use: Annotated[str, Field(min_length=1)]


class PromoteParams(Section):
    mode: Literal["disabled", "dry_run", "enabled"]
    policy: Annotated[str, Field(min_length=1)]


class Params(Section):
    """All sections of params.yaml; `profile` names the overlay that was laid over it."""

    profile: str
    data: DataParams
    validate_: ValidateParams = Field(alias="validate")
    segment: SegmentParams
    split: SplitParams
    augment: AugmentParams
    mixup: MixupParams
    train: TrainParams
    evaluate: EvaluateParams
    explain: ExplainParams
    register_: RegisterParams = Field(alias="register")
    promote: PromoteParams


def profile_names(root: Path = Path()) -> tuple[str, ...]:
    """The profiles that exist: `default` (params.yaml as it is) and one for each file in params/."""
    return ("default", *sorted(path.stem for path in (root / OVERLAYS).glob("*.yaml")))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names, as on the command line; an empty section stays as it is."""
    told: dict[str, Any] = {}
    for name, value in values.items():
        told |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return told


def load_params(profile: str = "default", overrides: Sequence[str] = (), root: Path = Path()) -> Params:
    """Read params.yaml, lay the profile over it, then each `key.key=value` of `overrides` (values are YAML).

    Raises
    ------
    InputError
        naming the key, its value, where it was set and what is allowed.
    """
    if profile not in profile_names(root):
        raise InputError(f"unknown profile {profile!r}; allowed: {', '.join(profile_names(root))}")
    values = _read_yaml(root / PARAMS_FILE)
    origins = dict.fromkeys(_leaves(values), str(PARAMS_FILE))
    layers = [] if profile == "default" else [(OVERLAYS / f"{profile}.yaml", _read_yaml(root / OVERLAYS / f"{profile}.yaml"))]
    for name, layer in [*layers, *((f"--set {text}", _parse_override(text)) for text in overrides)]:
        values = _laid_over(values, layer)
        origins.update(dict.fromkeys(_leaves(layer), str(name)))
    if "profile" in values:
        raise InputError("profile is not a parameter of params.yaml; choose it with --profile")
    try:
        return Params.model_validate_json(json.dumps({**values, "profile": profile}))
    except ValidationError as error:
        raise InputError(_explain(error, origins)) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = parse_yaml(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} not found; run dermaflow in the project's root folder") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must be a mapping of sections; see params.yaml in the repository")
    return value


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, raw = text.partition("=")
    if not equals or not all(key.split(".")):
        raise InputError(f"--set {text}: expected KEY=VALUE with a dotted key, such as train.epochs=3")
    try:
        value: Any = parse_yaml(raw)
    except yaml.YAMLError as error:
        raise InputError(f"--set {text}: the value is not valid YAML") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    leaves = []
    for key, value in values.items():
        leaves.append(f"{prefix}{key}")
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{key}.")
    return leaves


def _explain(error: ValidationError, origins: dict[str, str]) -> str:
    """One line for each fault: the key, its value, where it was set, what is allowed."""
    lines = []
    faults = error.errors()
    inner = [fault["loc"] for fault in faults]
    for fault in faults:
        if any(place != fault["loc"] and place[: len(fault["loc"])] == fault["loc"] for place in inner):
            continue  # a fault inside it says it better
        parts = [str(part) for part in fault["loc"] if part != "[key]"]
        key = ".".join(parts)
        origin = next((origins[".".join(parts[:n])] for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in origins), "")
        where = f" ({origin})" if origin else ""
        if fault["type"] == "extra_forbidden":
            known = _known_keys(parts[:-1])
            close = difflib.get_close_matches(parts[-1], known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            lines.append(f"unknown parameter {key}{where}; {hint}known here: {', '.join(known)}")
        elif fault["type"] == "missing":
            lines.append(f"parameter {key} is missing; add it to {PARAMS_FILE}")
        else:
            allowed = fault["msg"].removeprefix("Value error, ")
            value = "" if isinstance(fault["input"], dict) else f" is {fault['input']!r}"
            lines.append(f"parameter {key}{value}{where}: {allowed[0].lower()}{allowed[1:]}")
    return "\n".join(lines)


def _known_keys(path: Sequence[str]) -> list[str]:
    model: Any = Params
    for part in path:
        fields = {(field.alias or name): field.annotation for name, field in model.model_fields.items()}
        model = fields.get(part)
        model = next(
            (arg for arg in getattr(model, "__args__", ()) if isinstance(arg, type) and issubclass(arg, Section)), model
        )
        if not (isinstance(model, type) and issubclass(model, Section)):
            return []
    return sorted((field.alias or name) for name, field in model.model_fields.items() if name != "profile")
