"""Asking a registry of images: the manifest of an image, hashed as it comes, and the labels that its build gave it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dermaflow.errors import InputError

_TIMEOUT = 15.0  # seconds for one answer
_THIS_MACHINE = ("localhost", "127.0.0.1")
_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_IMAGES = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")


def is_this_machine(reference: str) -> bool:
    """Whether a registry, or an image by its registry's name, is of this machine alone."""
    return reference.partition("/")[0].partition(":")[0] in _THIS_MACHINE


def manifest(reference: str, which: str) -> tuple[str, dict[str, Any]]:
    """The digest and the content of a manifest, as a node would pull it.

    Parameters
    ----------
    reference: the image without tag and digest, as in infra/images/lock.yaml.
    which: its tag, or its digest, by which what is sent is then checked.

    Raises
    ------
    InputError
        when the registry does not answer, does not let this user pull, has no such image, or sends other bytes.
    """
    content = _get(reference, f"manifests/{which}", shown=which)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if which.startswith("sha256:") and digest != which:
        host, _, name = reference.partition("/")
        raise InputError(f"{host} sends other bytes for {name} than {which} names; do not pull from it")
    return digest, json.loads(content)


def labels(reference: str, content: Mapping[str, Any]) -> dict[str, str]:
    """The labels of an image by its manifest; of an index of several platforms, those of the first. Raises as `manifest`."""
    if content.get("mediaType") in _INDEXES or "manifests" in content:
        _, inner = manifest(reference, content["manifests"][0]["digest"])
        return labels(reference, inner)
    digest = content["config"]["digest"]
    config = json.loads(_get(reference, f"blobs/{digest}", shown=digest))
    return dict(config.get("config", {}).get("Labels") or {})


def _get(reference: str, path: str, shown: str) -> bytes:
    import requests

    host, _, name = reference.partition("/")
    scheme = "http" if is_this_machine(host) else "https"  # as container runtimes have it
    url = f"{scheme}://{host}/v2/{name}/{path}"
    headers = {"Accept": ", ".join((*_INDEXES, *_IMAGES))}
    try:
        answer = requests.get(url, headers=headers, timeout=_TIMEOUT)
        if answer.status_code == 401:
            headers |= _authorization(answer.headers.get("WWW-Authenticate", ""), host)
            answer = requests.get(url, headers=headers, timeout=_TIMEOUT)
    except requests.RequestException as error:
        raise InputError(f"{host} does not answer ({type(error).__name__}); correct the lock or the network") from None
    if answer.status_code in (401, 403):
        raise InputError(
            f"{host} does not let this user pull {name}; `docker login {host}`, and name a pull secret in infra/tasks.yaml"
        )
    if answer.status_code == 404:
        raise InputError(f"{host} has no {name} with {shown}; `dermaflow images push` it, which writes the lock anew")
    if answer.status_code != 200:
        raise InputError(f"{host} answers {answer.status_code} for {name}; try again when it is well")
    return bytes(answer.content)


def _authorization(challenge: str, host: str) -> dict[str, str]:
    """What a registry asks for before it answers: a token by its realm, or the password that `docker login` kept."""
    import requests

    kept = _docker_login(host)
    basic = {"Authorization": f"Basic {kept}"} if kept else {}
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not challenge.lower().startswith("bearer") or "realm" not in asked:
        return basic
    wanted = {key: asked[key] for key in ("service", "scope") if key in asked}
    told = requests.get(asked["realm"], params=wanted, headers=basic, timeout=_TIMEOUT)
    token = told.json().get("token") or told.json().get("access_token") if told.ok else None
    return {"Authorization": f"Bearer {token}"} if token else basic


def _docker_login(host: str) -> str | None:
    path = Path.home() / ".docker" / "config.json"
    try:
        auth = json.loads(path.read_text()).get("auths", {}).get(host, {}).get("auth")
    except (OSError, ValueError, AttributeError):  # no docker here: pull as nobody
        return None
    return str(auth) if auth and base64.b64decode(auth) else None
