"""A STUB of a Kubernetes API server, for tests of what we ask it: no cluster.

Replies are built by the kubernetes client's models. Beside it a STUB of an image registry (HTTP API v2), which asks for a token
first, as public ones do.
"""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubernetes import client as k8s

from tests.local_server import LocalServer, Quiet

_CLIENT = k8s.ApiClient(k8s.Configuration())


class KubeStub(LocalServer):
    """Answers at `url`; what there is stands in its dictionaries.

    Attributes
    ----------
    forbidden: kinds (secrets, nodes ...) that this user may not look at.
    """

    def __init__(self) -> None:
        super().__init__(_Kube)
        self.secrets: dict[str, list[str]] = {}
        self.accounts: set[str] = set()
        self.claims: dict[str, tuple[str, str]] = {}
        self.nodes: dict[str, tuple[str, int]] = {}
        self.pods: list[tuple[str, int]] = []
        self.forbidden: set[str] = set()

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that leads here."""
        named = {"name": "stub"}
        told = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stub",
            "clusters": [{**named, "cluster": {"server": self.url}}],
            "users": [{**named, "user": {"token": "a-kubernetes-token-that-nobody-shows"}}],
            "contexts": [{**named, "context": {"cluster": "stub", "user": "stub"}}],
        }
        path.write_text(yaml.safe_dump(told))
        return path

    def find(self, kind: str, name: str) -> Any:
        meta = k8s.V1ObjectMeta(name=name)
        if kind == "secrets" and name in self.secrets:
            data = {key: base64.b64encode(b"a-secret-that-nobody-shows").decode() for key in self.secrets[name]}
            return k8s.V1Secret(metadata=meta, data=data)
        if kind == "serviceaccounts" and name in self.accounts:
            return k8s.V1ServiceAccount(metadata=meta)
        if kind == "persistentvolumeclaims" and name in self.claims:
            phase, mode = self.claims[name]
            spec = k8s.V1PersistentVolumeClaimSpec(
                access_modes=[mode], resources=k8s.V1VolumeResourceRequirements(requests={"storage": "100Gi"})
            )
            return k8s.V1PersistentVolumeClaim(metadata=meta, spec=spec, status=k8s.V1PersistentVolumeClaimStatus(phase=phase))
        return None

    def list_nodes(self, selector: str) -> Any:
        """All nodes, or with a selector those of one pool."""
        label, _, value = selector.partition("=")
        items = [
            k8s.V1Node(
                metadata=k8s.V1ObjectMeta(name=name, labels={label: pool} if selector else {}),
                spec=k8s.V1NodeSpec(),
                status=k8s.V1NodeStatus(allocatable={"nvidia.com/gpu": str(gpus)}),
            )
            for name, (pool, gpus) in self.nodes.items()
            if not selector or pool == value
        ]
        return k8s.V1NodeList(items=items)

    def list_pods(self) -> Any:
        items = [
            k8s.V1Pod(
                metadata=k8s.V1ObjectMeta(name=f"pod-{at}"),
                spec=k8s.V1PodSpec(
                    node_name=node,
                    containers=[
                        k8s.V1Container(name="main", resources=k8s.V1ResourceRequirements(limits={"nvidia.com/gpu": str(gpus)}))
                    ],
                ),
            )
            for at, (node, gpus) in enumerate(self.pods)
        ]
        return k8s.V1PodList(items=items)


class _Kube(Quiet, BaseHTTPRequestHandler):
    server: KubeStub

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = url.path.removeprefix("/api/v1/").split("/")
        kind, name = (parts[2], parts[3]) if parts[0] == "namespaces" else (parts[0], "")
        if kind in self.server.forbidden:
            self._send(403, k8s.V1Status(code=403, message=f"{kind} is forbidden", status="Failure"))
        elif kind == "nodes":
            self._send(200, self.server.list_nodes(parse_qs(url.query).get("labelSelector", [""])[0]))
        elif kind == "pods":
            self._send(200, self.server.list_pods())
        else:
            found = self.server.find(kind, name)
            missing = k8s.V1Status(code=404, message=f"{kind} {name} not found", status="Failure")
            self._send(200 if found else 404, found or missing)

    def _send(self, status: int, value: Any) -> None:
        _answer(self, status, json.dumps(_CLIENT.sanitize_for_serialization(value)).encode(), "application/json")


class RegistryStub(LocalServer):
    """A registry whose one manifest has `digest` and `tag`, and whose image has `labels`.

    It answers those alone who bring the token that it gives to everybody.
    """

    tag = "v1"

    def __init__(self, names: tuple[str, ...], labels: dict[str, str] | None = None) -> None:
        super().__init__(_Registry)
        self.names = set(names)
        self.config = json.dumps({"config": {"Labels": labels}}).encode()
        kind = "application/vnd.oci.image.manifest.v1+json"
        told = {"schemaVersion": 2, "mediaType": kind, "config": {"digest": _digest(self.config)}}
        self.manifest = json.dumps(told).encode()
        self.digest = _digest(self.manifest)
        self.sends = self.manifest
        self.closed = False
        self.host = self.url.removeprefix("http://")


class _Registry(Quiet, BaseHTTPRequestHandler):
    server: RegistryStub

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            _answer(self, 200, json.dumps({"token": parse_qs(url.query)["scope"][0]}).encode(), "application/json")
            return
        blob = "/blobs/" in url.path
        name, _, which = url.path.removeprefix("/v2/").partition("/blobs/" if blob else "/manifests/")
        scope = f"repository:{name}:pull"
        if self.server.closed or self.headers.get("Authorization") != f"Bearer {scope}":
            challenge = f'Bearer realm="{self.server.url}/token",service="stub",scope="{scope}"'
            _answer(self, 401, b"{}", "application/json", {"WWW-Authenticate": challenge})
        elif blob and name in self.server.names and which == _digest(self.server.config):
            _answer(self, 200, self.server.config, "application/octet-stream")
        elif not blob and name in self.server.names and which in (self.server.digest, self.server.tag):
            _answer(self, 200, self.server.sends, "application/vnd.oci.image.manifest.v1+json")
        else:
            _answer(self, 404, b"{}", "application/json")


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
