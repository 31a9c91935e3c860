"""source.json: what a source says of itself."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dermaflow.classes import HAM10000_CLASSES
from dermaflow.errors import InputError, shown

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # an id becomes a file name and a table cell
SAFE_ID_ALLOWED = "letters, digits, dot, dash and underscore, at most 128, the first a letter or digit"
_Text = Annotated[str, Field(min_length=1, max_length=1000)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)  # unknown keys are the source's own business


class ClassCounts(_Part):
    """Images of a class that there were, that stand in the source as they are, and copies of them."""

    images: int
    as_they_are: int
    copies: int


class Balance(_Part):
    """How the classes of a source were balanced (components/balance)."""

    seed: int
    classes: dict[str, ClassCounts]


class MadeFrom(_Part):
    """The data that a source was made from."""

    name: str
    uri: str
    content_digest: str
    dvc_revision: str | None = None


class Description(_Part):
    """What a source.json may hold, all of it optional.

    Attributes
    ----------
    synthetic: whether the images are drawn, not photographed.
    classes: in the order of a model's outputs.
    mark: what nobody may overlook in anything that is made of these images; it also keeps that from promotion.
    """

    name: _Text | None = None
    licence: _Text | None = None
    synthetic: bool = False
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    mark: _Text | None = None
    made_from: MadeFrom | None = None
    balance: Balance | None = None

    @field_validator("classes")
    @classmethod
    def _are_names(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        wrong = [name for name in value or () if not SAFE_ID.fullmatch(name)]
        if wrong or len(set(value or ())) != len(value or ()):
            raise ValueError(f"different names, each of {SAFE_ID_ALLOWED}")
        return value

    @classmethod
    def parse(cls, text: bytes, place: str) -> Description:
        """Read a source.json; raises InputError naming the file, the key, its value and what is allowed."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            if fault["type"] == "json_invalid":
                raise InputError(f"{place} is not valid JSON: {fault['ctx']['error']}") from error
            key = ".".join(map(str, fault["loc"]))
            told = fault["msg"].removeprefix("Value error, ")
            if not key:
                raise InputError(f"{place} must be an object; known in it: {', '.join(cls.model_fields)}") from error
            raise InputError(f"{place}: {key} is {shown(fault['input'])}; allowed: {told[0].lower()}{told[1:]}") from error

    @property
    def class_order(self) -> tuple[str, ...]:
        """Its classes, or HAM10000's where it names none, in the order of a model's outputs."""
        return self.classes or HAM10000_CLASSES

    def told(self) -> dict[str, Any]:
        """What goes into dataset.json beside name, licence and synthetic: the parts that few sources have."""
        return self.model_dump(mode="json", include={"mark", "made_from", "balance"}, exclude_none=True)
