"""The manifests: they build without a network, are valid and restricted, name what exists, and let through what is meant."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dermaflow.params import load_params
from dermaflow.roles import read_table as read_roles
from pipelines.provision import read_table
from tests.infra import manifests
from tests.infra.checkers import (
    INFRA,
    KUBERNETES,
    KUBERNETES_VERSION,
    OVERLAYS,
    built,
    checker,
    documents,
    fails,
    overlay_built,
    passes,
)
from tests.workspace import ROOT

BASE = sorted(path for path in (KUBERNETES / "base").rglob("*.yaml") if path.name != "kustomization.yaml")
THIRD_PARTY = {"docker.io/library/postgres", "docker.io/chrislusf/seaweedfs"}
README = (KUBERNETES / "README.md").read_text()


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What each overlay builds."""
    return overlay_built(request.param, tmp_path_factory.mktemp("kubernetes"))


@pytest.fixture(scope="module")
def objects(overlay: str) -> list[manifests.Object]:
    return documents(overlay)


def test_base_is_valid_as_it_stands():
    """File by file, so that this is known also where there is no kustomize."""
    assert len(BASE) > 10
    passes(checker("kubernetes-validate"), "--strict", "--no-warn", "--kubernetes-version", KUBERNETES_VERSION, *BASE)


def test_overlay_is_valid(overlay: str, tmp_path: Path):
    (tmp_path / "all.yaml").write_text(overlay)
    command = (checker("kubernetes-validate"), "--strict", "--no-warn", "--kubernetes-version", KUBERNETES_VERSION)
    passes(*command, tmp_path / "all.yaml")


def test_what_is_no_field_is_found(overlay: str, tmp_path: Path):
    """The check that found nothing does find a misspelt field, which the API server would drop in silence."""
    misspelt = overlay.replace("readOnlyRootFilesystem:", "readonlyRootFilesystem:", 1)
    assert misspelt != overlay
    (tmp_path / "all.yaml").write_text(misspelt)
    command = (checker("kubernetes-validate"), "--strict", "--no-warn", "--kubernetes-version", KUBERNETES_VERSION)
    assert "readonlyRootFilesystem" in fails(*command, tmp_path / "all.yaml")


def test_no_secret_is_in_the_repository(objects: list[manifests.Object]):
    assert manifests.of_kind(objects, "Secret") == []
    assert [path for path in KUBERNETES.rglob("*.yaml") if "secretGenerator" in path.read_text()] == []


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Keys of each secret that the commands of README.md make from what infra/secrets.sh made: kubectl, without a cluster."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not there, so that README.md's commands for secrets were not run")
    folder = tmp_path_factory.mktemp("secrets") / "made"
    passes(INFRA / "secrets.sh", folder)
    commands = re.findall(r"^k (create secret generic .*)$", README, re.MULTILINE)
    assert len(commands) == len(set(commands)) > 5
    made = {}
    for command in commands:
        line = f"kubectl --namespace dermaflow {command} --dry-run=client --output=json"
        secret = json.loads(passes("sh", "-c", line, env={**os.environ, "D": str(folder), "KUBECONFIG": os.devnull}))
        made[secret["metadata"]["name"]] = set(secret["data"])
    return made


def test_secrets_of_the_readme_are_those_that_pods_ask_for(objects: list[manifests.Object], secrets: dict[str, set[str]]):
    for name, template in manifests.pod_templates(objects).items():
        assert manifests.named(template["spec"], "secret") <= secrets.keys(), name
        for container in manifests.containers(template["spec"]):
            references = [item["valueFrom"] for item in container.get("env", ()) if "valueFrom" in item]
            for reference in (item["secretKeyRef"] for item in references if "secretKeyRef" in item):
                assert reference["key"] in secrets[reference["name"]], name
    assert secrets["dermaflow-s3-steps"] == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert secrets["dermaflow-mlflow"] == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    accounts = {account for _, account in read_roles(ROOT / "mlflow" / "roles.yaml").pairs}
    assert secrets["dermaflow-mlflow-accounts"] == {"roles.yaml", *accounts}
    assert secrets["dermaflow-s3-identities"] == {"s3.json"}  # the name that the server's arguments have


def test_what_the_table_of_tasks_names_is_what_the_manifests_make(
    objects: list[manifests.Object], secrets: dict[str, set[str]]
):
    """infra/tasks.yaml names accounts, claims, secrets, config maps and labels: they are these, and terraform's."""
    run, gpu = (table := read_table()).run, table.pools["gpu"]
    there = {(item["kind"], item["metadata"]["name"]) for item in objects}
    assert next(item for item in objects if item["kind"] == "Namespace")["metadata"]["name"] == run.namespace
    named = {
        ("ServiceAccount", run.service_account),
        ("PersistentVolumeClaim", run.volume.claim),
        ("ConfigMap", run.endpoints.name),
    }
    assert named <= there
    endpoints = next(item for item in objects if item["metadata"]["name"] == run.endpoints.name)
    missing = set(run.endpoints.env) - endpoints["data"].keys()
    assert missing <= {"KF_PIPELINES_UI_ENDPOINT", "AWS_ENDPOINT_URL_S3"}, "a site's own; S3 of AWS has no address"
    for secret in run.secrets.values():
        if secret.env is not None:
            assert set(secret.env) == secrets[secret.name], secret.name
    let_out = [item["spec"]["podSelector"].get("matchLabels", {}) for item in manifests.of_kind(objects, "NetworkPolicy")]
    assert {run.internet.label: run.internet.value} in let_out
    pools = (INFRA / "terraform" / "eks.tf").read_text()
    assert f'{{ "{gpu.label}" = "{gpu.value}" }}' in pools
    assert table.gpu.taint in pools


def test_what_pods_name_exists(objects: list[manifests.Object]):
    """Config maps, service accounts and roles are all built."""
    there = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for name, template in manifests.pod_templates(objects).items():
        pod = template["spec"]
        assert ("ServiceAccount", pod["serviceAccountName"]) in there, name
        assert {("ConfigMap", other) for other in manifests.named(pod, "configMap")} <= there, name
    for binding in manifests.of_kind(objects, "RoleBinding"):
        assert ("Role", binding["roleRef"]["name"]) in there
        assert {("ServiceAccount", subject["name"]) for subject in binding["subjects"]} <= there


def test_pods_keep_pod_security_restricted(objects: list[manifests.Object]):
    namespace = next(item for item in objects if item["kind"] == "Namespace")
    modes = {namespace["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")}
    assert modes == {"restricted"}
    for name, template in manifests.pod_templates(objects).items():
        pod = template["spec"]
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), name
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] >= 10_000, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        kinds = {key for volume in pod["volumes"] for key in volume if key != "name"}
        assert kinds <= {"configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim"}, name
        for container in manifests.containers(pod):
            context = container["securityContext"]
            assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True), name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            for amounts in (container["resources"]["requests"], container["resources"]["limits"]):
                assert {"cpu", "memory", "ephemeral-storage"} <= set(amounts), name


def test_only_who_must_speaks_with_whom(objects: list[manifests.Object]):
    pods = {template["metadata"]["labels"]["app.kubernetes.io/name"]: template["metadata"]["labels"]
            for template in manifests.pod_templates(objects).values()}  # fmt: skip
    pods["a step"] = {"workflows.argoproj.io/workflow": "dermaflow-x"}
    pods["a stranger"] = {"app": "stranger"}
    meant = {
        ("a step", "mlflow", 5000), ("trigger", "mlflow", 5000), ("roles", "mlflow", 5000),
        ("mlflow", "postgres", 5432), ("backup", "postgres", 5432),
        ("a step", "s3", 8333), ("mlflow", "s3", 8333), ("trigger", "s3", 8333), ("buckets", "s3", 8333),
        ("backup", "s3", 8333),
    }  # fmt: skip
    ports = {5000, 5432, 8333, 8888, 9333}
    for direction in ("Egress", "Ingress"):
        assert manifests.allowed(objects, pods, ports, direction) == {way for way in meant if {way[0], way[1]} <= set(pods)}


def test_services_find_their_pods(objects: list[manifests.Object]):
    """A service's selector and port must be those of some workload, and the endpoints must name services that there are."""
    templates = manifests.pod_templates(objects).values()
    for service in manifests.of_kind(objects, "Service"):
        if service["spec"].get("type") == "ExternalName":
            continue
        wanted, port = service["spec"]["selector"].items(), service["spec"]["ports"][0]["targetPort"]
        matching = [template for template in templates if wanted <= template["metadata"]["labels"].items()]
        assert len(matching) == 1, service["metadata"]["name"]
        assert port in {item["name"] for container in matching[0]["spec"]["containers"] for item in container["ports"]}
    names = {service["metadata"]["name"] for service in manifests.of_kind(objects, "Service")}
    endpoints = next(item for item in objects if item["metadata"]["name"] == "dermaflow-endpoints")["data"]
    for url in endpoints.values():
        if ".dermaflow.svc" in url:
            assert re.fullmatch(r"http://([a-z0-9]+)\.dermaflow\.svc:\d+", url)[1] in names


def test_steps_have_no_right_to_run_or_read_others(objects: list[manifests.Object]):
    """What KFP's own account has and ours has not: pods, exec, all secrets. A stolen step can not start another."""
    for role in manifests.of_kind(objects, "Role"):
        for rule in role["rules"]:
            assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
            assert "pods/exec" not in rule["resources"]
            if "secrets" in rule["resources"]:
                assert rule["resourceNames"] == ["mlpipeline-minio-artifact"]
                assert rule["verbs"] == ["get"]
            if "pods" in rule["resources"]:
                assert set(rule["verbs"]) <= {"get", "list", "watch"}


def test_third_party_images_are_exact_and_listed(objects: list[manifests.Object]):
    others = {image for image in manifests.images(objects) if "dermaflow" not in image}
    assert {image.partition(":")[0] for image in others} <= THIRD_PARTY
    for image in others:
        assert re.search(r":\d+\.\d+", image), image
        assert f"`{image}`" in README, f"{image} is not in README.md's list of what was not verified by digest"


def test_prod_does_not_deploy_without_a_release():
    """Images lead nowhere until they are digests, and the policy refuses each workload that has one of them."""
    text = built(KUBERNETES / "overlays" / "prod")
    ours = {image for image in manifests.images(documents(text)) if "dermaflow" in image}
    assert ours
    for image in ours:
        assert image.startswith("unreleased.invalid/") or re.search(r"@sha256:[0-9a-f]{64}$", image), image


def test_the_policy_refuses_what_is_no_digest_and_passes_what_is(tmp_path: Path):
    """The policy's own expressions, evaluated: on prod as it is, then on prod with digests (of this test's, in a copy)."""
    python = checker("python")
    copy = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copy)
    settings = copy / "overlays" / "prod" / "kustomization.yaml"
    tagged = yaml.safe_load(settings.read_text())
    tagged["images"] = [{"name": image["name"], "newName": f"registry.test/dermaflow/{image['name']}", "newTag": "1.0"}
                        for image in tagged["images"]]  # fmt: skip
    settings.write_text(yaml.safe_dump(tagged))
    by_tag = built(copy / "overlays" / "prod")
    by_digest = re.sub(r"(registry\.test/dermaflow/\S+):1\.0", rf"\1@sha256:{'0' * 64}", by_tag)
    assert by_digest != by_tag
    for text, refused in ((by_tag, {"mlflow", "trigger", "backup", "roles"}), (by_digest, set())):
        (tmp_path / "all.yaml").write_text(text)
        answer = subprocess.run(
            [python, Path(__file__).with_name("admission.py"), tmp_path / "all.yaml"],
            capture_output=True,
            text=True,
            check=True,
        )
        told = json.loads(answer.stdout)
        assert {name for name, admitted in told.items() if not admitted} == refused
        assert "postgres" in told


def test_ledger_is_locked_everywhere(objects: list[manifests.Object]):
    job = manifests.pod_templates(objects).get("Job/buckets")
    if job is None:
        assert "statefulset/s3" not in {f"{item['kind']}/{item['metadata']['name']}".lower() for item in objects}
        return  # S3 is outside of the cluster: terraform makes the buckets (test_terraform.py)
    settings = {item["name"]: item.get("value") for item in job["spec"]["containers"][0]["env"]}
    assert settings["LEDGER_MODE"] in ("GOVERNANCE", "COMPLIANCE")
    assert int(settings["LEDGER_DAYS"]) >= 1


def test_roles_are_set_up_as_the_command_does(objects: list[manifests.Object]):
    """The same table, experiment and administrator; and an account of ci has the rights that pods need on MLflow."""
    container = manifests.pod_templates(objects)["Job/roles"]["spec"]["containers"][0]
    arguments = dict(argument.split("=", 1) for argument in container["args"])
    assert arguments["--experiment"] == load_params("default", root=ROOT).register_.experiment
    assert set(arguments) == {"--tracking-uri", "--experiment", "--table", "--passwords"}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert arguments["--passwords"] == mounted["accounts"]
    assert arguments["--table"] == f"{mounted['accounts']}/roles.yaml"


@pytest.mark.parametrize("folder", ["", "kubernetes", "terraform", "compose", "mlflow"])
def test_readmes_say_what_a_folder_makes_costs_and_how_to_remove_it(folder: str):
    text = (INFRA / folder / "README.md").read_text()
    for word in ("cost", "remove"):
        assert word in text.lower()
    assert re.search(r"never (met|been|built|applied)|ever (seen|applied)", text, re.IGNORECASE), (
        "what was not tried must be said"
    )
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        assert (INFRA / folder / link.partition("#")[0]).exists(), link


def test_versions_agree():
    """What the manifests are checked against is what terraform makes and README.md names; KFP's server is the client's."""
    minor = KUBERNETES_VERSION.rpartition(".")[0]
    assert f'default     = "{minor}"' in (INFRA / "terraform" / "variables.tf").read_text()
    assert f"Kubernetes {minor}" in README
    namespace = (KUBERNETES / "base" / "namespace.yaml").read_text()
    assert set(re.findall(r"-version: (\S+)", namespace)) == {f"v{minor}"}
    locked = re.search(r"^kfp==(\S+)", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE)
    assert locked
    assert f"?ref={locked[1]}" in README
