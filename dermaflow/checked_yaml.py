"""Reading a YAML file of settings into its pydantic model: every fault at once, each with field, value and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dermaflow.errors import InputError, shown
from dermaflow.yaml_files import parse_yaml

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_Settings = TypeVar("_Settings", bound=BaseModel)


def read_settings(path: Path, model: type[_Settings], *, name: str = "", missing: str = "", remedy: str = "") -> _Settings:
    """A file's settings, strictly: no field that the model has not, and no value of another type.

    Parameters
    ----------
    name: how messages call the file; by default its path.
    missing: what to do where there is no such file.
    remedy: what to do about a fault in it.

    Raises
    ------
    InputError
        when the file can not be read, is not YAML, or does not fit the model.
    """
    name = name or str(path)
    try:
        return model.model_validate_json(json.dumps(parse_yaml(path.read_text())))
    except OSError as error:
        raise InputError("; ".join(filter(None, (f"{name}: {error.strerror}", missing)))) from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:  # TypeError: a key that JSON has not
        raise InputError("; ".join(filter(None, (f"{name} is not valid YAML: {error}", remedy)))) from error
    except ValidationError as error:
        faults = (f"{name}: {_told(fault)}" for fault in error.errors())
        raise InputError("\n".join("; ".join(filter(None, (fault, remedy))) for fault in faults)) from error


def _told(fault: ErrorDetails) -> str:
    """A fault with its field and value; of a section's fault the value would be all of the section."""
    value = "" if isinstance(fault["input"], dict) else f" (is {shown(fault['input'])})"
    return f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}{value}"
