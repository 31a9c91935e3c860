"""`dermaflow check --on cluster`: each fault is a line with its remedy. S3 and MLflow are real, KFP and Kubernetes stubs."""

from __future__ import annotations

import json
import re

import pytest

from pipelines.images import GROUPS
from pipelines.provision import read_table
from tests.kube_stub import KubeStub, RegistryStub
from tests.local_server import running
from tests.locks import write_lock
from tests.pipelines.conftest import BUCKET, SOURCE
from tests.s3_server import LISTER
from tests.workspace import make_workspace, sets

NAMES = tuple(f"dermaflow-python/{group}" for group in GROUPS)
SECRETS = {secret.name: list(secret.env) for secret in read_table().run.secrets.values() if secret.env}
CLUSTER = ("parameters", "images", "KFP API", "secrets", "volume", "GPU pools", "object store", "MLflow")


@pytest.fixture
def kube():
    with running(KubeStub()) as stub:
        stub.secrets = dict(SECRETS)
        stub.accounts = {"dermaflow-steps"}
        stub.claims = {"dermaflow-state": ("Bound", "ReadWriteMany")}
        stub.nodes = {"node-1": ("gpu", 2)}
        stub.pods = [("node-1", 1)]
        yield stub


@pytest.fixture
def images():
    with running(RegistryStub(NAMES)) as stub:
        yield stub


@pytest.fixture
def check(bucket, mlflow_url, kube, images, kfp, tmp_path, monkeypatch):
    """How the command is called, and what it finds: check name -> (ok, detail)."""
    place = make_workspace(tmp_path / "workspace")
    write_lock(place.path / "lock.yaml", reference=f"{images.host}/dermaflow-python/data", digest=images.digest)
    told = {**bucket.environment, "KF_PIPELINES_ENDPOINT": kfp.url, "HOME": str(tmp_path)}
    told["KUBECONFIG"] = str(kube.write_kubeconfig(tmp_path / "kubeconfig"))
    for name, value in told.items():
        monkeypatch.setenv(name, value)

    def called(*changes):
        values = (f"data.source={SOURCE}", f"register.tracking_uri={mlflow_url}", "data.image_size=72",
                  "train.architectures=[cnn]")  # fmt: skip
        done = place.call("check", "--on", "cluster", "--images", "lock.yaml", "--json", *sets(*values, *changes))
        found = {one["name"]: (one["ok"], one["detail"]) for one in json.loads(done.stdout)["checks"]}
        assert done.returncode == (0 if all(ok for ok, _ in found.values()) else 2)
        hidden = "a-secret-that-nobody-shows|a-kubernetes-token-that-nobody-shows|a-cookie-that"
        assert not re.findall(hidden, done.stdout + done.stderr)
        return found

    return called


def test_a_cluster_that_has_everything_passes(check):
    found = check()
    assert all(ok for ok, _ in found.values()), found
    assert found.keys() >= set(CLUSTER)
    assert "pullable by digest" in found["images"][1]
    assert "v2beta1, many users, namespace dermaflow" in found["KFP API"][1]
    assert "no dermaflow-webhook (optional)" in found["secrets"][1]
    assert found["GPU pools"][1].startswith("gpu 1 free")
    assert "may read and write dermaflow" in found["MLflow"][1]


def test_a_cluster_that_has_nothing_names_every_fault_and_its_remedy_in_one_line_each(check, kube, images, kfp):
    kube.secrets, kube.accounts, kube.claims = {}, set(), {}
    images.names = set()
    kfp.token = "another"  # noqa: S105 - of the stub
    found = check(f"data.source=s3://{BUCKET}/nothing", "register.tracking_uri=http://127.0.0.1:9")
    assert not any(found[name][0] for name in ("images", "KFP API", "secrets", "volume", "object store", "MLflow"))
    lines = {name: found[name][1].splitlines() for name in CLUSTER}
    assert len(lines["images"]) == len(GROUPS)
    assert all("`dermaflow images push` it" in line for line in lines["images"])
    assert "set KF_PIPELINES_TOKEN_FILE" in lines["KFP API"][0]
    assert lines["secrets"][0].startswith("there is no secret dermaflow-mlflow: kubectl -n dermaflow create secret generic")
    assert "no service account dermaflow-steps: kubectl apply -k" in lines["secrets"][1]
    assert "no volume claim dermaflow-state in dermaflow: kubectl apply -k" in lines["volume"][0]
    assert "has no objects; correct the prefix" in lines["object store"][0]
    assert "does not answer" in lines["MLflow"][0]


def test_a_registry_that_sends_other_bytes_is_found_out(check, images):
    images.sends = b"{}"
    ok, detail = check()["images"]
    assert not ok
    assert "sends other bytes for dermaflow-python/data" in detail


def test_a_registry_that_asks_for_a_login_says_so(check, images):
    images.closed = True
    ok, detail = check()["images"]
    assert not ok
    assert f"`docker login {images.host}`" in detail


def test_a_secret_without_a_key_is_found_and_an_optional_one_is_not_needed(check, kube):
    kube.secrets = {**SECRETS, "dermaflow-mlflow": ["MLFLOW_TRACKING_USERNAME"]}
    ok, detail = check()["secrets"]
    assert not ok
    assert detail == "secret dermaflow-mlflow lacks MLFLOW_TRACKING_PASSWORD: add them, by the names in infra/tasks.yaml"
    kube.secrets = {"dermaflow-mlflow": SECRETS["dermaflow-mlflow"]}
    assert check()["secrets"][0], "with a role for the pods there are no keys of S3"


def test_a_volume_for_one_node_alone_is_refused(check, kube):
    kube.claims = {"dermaflow-state": ("Bound", "ReadWriteOnce")}
    assert check()["volume"][0], "a cluster of one node needs no more"
    kube.nodes["node-2"] = ("gpu", 0)
    ok, detail = check()["volume"]
    assert not ok
    assert "need ReadWriteMany; make it anew of a storage class that has it" in detail


def test_what_this_user_may_not_look_at_is_told_and_not_taken_for_missing(check, kube):
    kube.forbidden = {"secrets", "nodes"}
    found = check()
    assert "this user may not look at it (403)" in found["secrets"][1]
    assert "this user may not look at it (403)" in found["GPU pools"][1]
    assert not found["secrets"][0]


def test_credentials_that_may_not_read_the_source_are_told(check, s3, monkeypatch):
    for name, value in s3.environment_of(*LISTER).items():
        monkeypatch.setenv(name, value)
    ok, detail = check()["object store"]
    assert not ok
    assert "denies access (AccessDenied); allow this user s3:ListBucket" in detail


def test_pools_that_do_not_grow_must_have_a_free_gpu(check, kube, monkeypatch):
    from pipelines import provision

    table = provision.read_table()
    fixed = {name: pool.model_copy(update={"from_zero": False}) for name, pool in table.pools.items()}
    monkeypatch.setattr(provision, "read_table", lambda: table.model_copy(update={"pools": fixed}))
    assert check()["GPU pools"][0]
    kube.pods = [("node-1", 1), ("node-1", 1)]
    ok, detail = check()["GPU pools"]
    assert not ok
    assert detail.startswith("cnn: no node of gpu, gpu-large has 1 free nvidia.com/gpu; wait, label one dermaflow.io/")
