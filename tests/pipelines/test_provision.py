"""What the compiled pipeline asks a cluster for: every task as infra/tasks.yaml states it, in the words of KFP's backend."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from components import BEFORE, OUT_OF_FOLD, TASKS
from dermaflow import images as names
from dermaflow.architectures import ARCHITECTURES
from dermaflow.errors import InputError
from dermaflow.params import load_params
from pipelines.graph import compile_to, tasks
from pipelines.graph import names as names_of
from pipelines.images import GROUPS, ImagesLock, group_of
from pipelines.provision import TABLE, amount, groups, read_table, trainings
from tests.golden import PROFILES, compiled, golden
from tests.sources import ROOT

VARIANTS = {"default": ("default",), "paper": ("paper",), "folds": ("default", "split.folds=3")}
SHM = "/dev/shm"  # noqa: S108 - of a pod
PURE = {*BEFORE, *TASKS, *OUT_OF_FOLD} - {"compare", "register", "promote", "notify"}


def words(variant, folder, lock=None):
    """The two documents of a variant's IR: pipeline and platform."""
    profile, *overrides = VARIANTS[variant]
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        compile_to(folder / "p.yaml", load_params(profile, overrides), lock)
    finally:
        os.chdir(before)
    return tuple(yaml.safe_load_all((folder / "p.yaml").read_text()))


@pytest.fixture(scope="module", params=VARIANTS)
def told(request, tmp_path_factory):
    return words(request.param, tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def table():
    return read_table()


def every_task(spec):
    """Each task that runs in a container: its name with its task, its executor's container, and its surroundings' inputs."""
    for part in (spec["root"], *spec["components"].values()):
        for name, task in part.get("dag", {}).get("tasks", {}).items():
            label = spec["components"][task["componentRef"]["name"]].get("executorLabel")
            if label:
                given = part.get("inputDefinitions", {}).get("parameters", {})
                yield name, task, spec["deploymentSpec"]["executors"][label]["container"], label, given


def env_of(container):
    return {entry["name"]: entry["value"] for entry in container["env"]}


def test_every_task_of_every_variant_has_a_row_and_every_row_a_task(table):
    assert set(table.tasks) == {*BEFORE, *TASKS, *OUT_OF_FOLD}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tasks_of_a_run_are_known_without_compiling_it(variant):
    profile, *overrides = VARIANTS[variant]
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        params = load_params(profile, overrides)
        assert names_of(params) == [task["name"] for task in tasks(params)]
    finally:
        os.chdir(before)


def test_every_task_has_limits_retry_and_timeout_as_the_table_says(told, table):
    spec, platform = told
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    seen = set()
    for name, task, container, label, _ in every_task(spec):
        row, pod = table.tasks[name], executors[label]
        resources = container["resources"]
        asked = {kind: (resources[f"resource{kind}Request"], resources[f"resource{kind}Limit"]) for kind in ("Cpu", "Memory")}
        assert asked == {"Cpu": row.cpu, "Memory": row.memory}, name
        assert int(pod["activeDeadlineSeconds"]) == row.minutes * 60
        policy = task["retryPolicy"]
        assert policy["maxRetryCount"] == row.retries >= 1
        assert policy["backoffDuration"] == f"{table.backoff.seconds}s"
        assert policy["backoffMaxDuration"] == f"{table.backoff.longest_seconds}s"
        assert task.get("cachingOptions", {}).get("enableCache", False) == row.cached == (name in PURE), name
        seen.add(name)
    assert seen >= set(TASKS)


def test_every_architecture_trains_on_a_gpu_of_a_pool_that_may_be_chosen_for_it(told, table):
    spec, platform = told
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, _, container, label, given in every_task(spec):
        accelerator = container["resources"].get("accelerator")
        if not name.startswith("train"):
            assert accelerator is None
            assert not {"nodeAffinity", "tolerations"} & executors[label].keys()
            continue
        assert accelerator["resourceType"] == "nvidia.com/gpu"
        assert int(accelerator["resourceCount"]) == table.tasks[name].gpus == 1
        assert executors[label]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        (affinity,) = executors[label]["nodeAffinity"]
        item = affinity["nodeAffinityJson"]["componentInputParameter"]
        assert given[item]["parameterType"] == "STRUCT", "a text would reach the backend as no affinity"
    items = spec["root"]["inputDefinitions"]["parameters"]["architectures"]["defaultValue"]
    assert [item["architecture"] for item in items] == list(load_params().train.architectures)
    for item in items:
        terms = item["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        chosen = [term["matchExpressions"][0] for term in terms]
        pools = [table.pools[pool] for pool in table.architectures[item["architecture"]]]
        assert chosen == [{"key": pool.label, "operator": "In", "values": [pool.value]} for pool in pools]


def test_another_pool_for_one_architecture_moves_that_one_alone(table):
    moved = table.model_copy(update={"architectures": {**table.architectures, "xception": ("gpu-large",)}})
    before, after = trainings(ARCHITECTURES, table), trainings(ARCHITECTURES, moved)
    changed = [one["architecture"] for one, other in zip(before, after, strict=True) if one != other]
    assert changed == ["xception"]
    assert '["gpu"]' not in json.dumps(after[-1])


def test_only_trainings_have_shared_memory_and_every_task_scratch_of_its_own(told, table):
    spec, platform = told
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, _, container, label, _ in every_task(spec):
        mounts = {mount["mountPath"]: mount for mount in executors[label]["emptyDirMounts"]}
        assert mounts[env_of(container)["TMPDIR"]]["sizeLimit"] == table.run.scratch.size
        assert (SHM in mounts) == name.startswith("train")
        if name.startswith("train"):
            assert mounts[SHM]["medium"] == "Memory"
            assert amount(mounts[SHM]["sizeLimit"]) < amount(table.tasks[name].memory[0])


def test_what_outlives_a_pod_lies_on_the_volume_that_it_mounts(told, table):
    spec, platform = told
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, _, container, label, _ in every_task(spec):
        home, mounts = env_of(container)["DERMAFLOW_HOME"], executors[label].get("pvcMount", [])
        assert [mount["mountPath"] for mount in mounts] == ([home] if table.tasks[name].volume else [])
    assert all(table.tasks[name].volume for name in ("ingest", "train", "train-fold", "split", "explain"))


def test_no_pod_is_root_and_every_pod_says_what_it_is_for(told, table):
    spec, platform = told
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, _, _, label, _ in every_task(spec):
        pod = executors[label]
        assert pod["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        labels = dict(pod["podMetadata"]["labels"])
        assert (labels.pop("dermaflow.io/egress", None) == "web") == table.tasks[name].internet
        assert labels == {**table.run.labels, "dermaflow.io/task": name}


def test_secrets_go_by_name_to_those_that_the_table_names_and_pure_steps_get_none(told, table):
    spec, platform = told
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, _, container, label, _ in every_task(spec):
        pod = executors[label]
        given = [entry["secretName"] for key in ("secretAsEnv", "secretAsVolume") for entry in pod.get(key, ())]
        assert sorted(given) == sorted(table.run.secrets[secret].name for secret in table.tasks[name].secrets)
        assert bool(pod.get("configMapAsEnv")) == bool(given)
        assert set(env_of(container)) == {"TMPDIR", "DERMAFLOW_HOME"}, "values of secrets come at run time alone"
    assert not table.tasks["split"].secrets
    assert not table.tasks["evaluate"].secrets


def test_the_run_has_a_deadline_and_is_forgotten_in_time(told, table):
    _, platform = told
    assert platform["platforms"]["kubernetes"]["pipelineConfig"] == {
        "activeDeadlineSeconds": table.run.deadline_hours * 3600,
        "resourceTtlOnSuccess": table.run.ttl_hours.success * 3600,
        "resourceTtlOnFailure": table.run.ttl_hours.failure * 3600,
    }
    longest = max(row.minutes for row in table.tasks.values())
    assert longest * 60 < table.run.deadline_hours * 3600


def test_the_groups_are_those_that_the_components_name(told, table):
    spec, _ = told
    assert {group_of(getattr(names, group.upper())) for group in GROUPS} == set(GROUPS)
    for name, _, container, _, _ in every_task(spec):
        assert group_of(container["image"]) == table.tasks[name].group, name
    assert groups(["notify", "ingest", "train"], table) == ["data", "train", "registry"]


def test_with_a_lock_every_task_runs_in_its_groups_image_by_digest(table, tmp_path):
    entry = {"revision": "c" * 40, "builder": "a builder", "mark": "local"}
    made = {
        group: {**entry, "reference": f"127.0.0.1:5000/{group}", "digest": f"sha256:{at:064x}"}
        for at, group in enumerate(GROUPS)
    }
    lock = ImagesLock.model_validate_json(json.dumps({"version": 1, "images": made}))
    spec, _ = words("paper", tmp_path, lock)
    for name, _, container, _, _ in every_task(spec):
        assert container["image"] == lock.images[table.tasks[name].group].pinned


def test_kfps_own_messages_take_every_word_of_it(told):
    """A field that the backend does not know raises here, as it does there."""
    spec, platform = told
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict({"activeDeadline": 1}, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


@pytest.mark.parametrize("profile", PROFILES)
def test_the_form_of_the_pipeline_is_the_one_that_was_agreed(profile):
    assert compiled(profile) == golden(profile).read_text(), "if this is meant: `make golden`, and read the difference"
    assert compiled(profile) == compiled(profile)
    assert len(golden(profile).read_bytes()) < 256 * 1024


@pytest.mark.parametrize("profile", PROFILES)
def test_the_agreed_form_names_no_machine_and_no_secret(profile):
    text = golden(profile).read_text()
    assert set(re.findall(r"sha256:[0-9a-f]{64}", text)) == {"sha256:" + "0" * 64}
    assert not re.findall(r"(?:^|[\s\"'=])(/(?:home|root|Users|work|tmp|mnt|data|opt)/[\w./-]+)", text)
    assert not re.findall(r"AKIA[0-9A-Z]{16}|-----BEGIN|xox[bp]-|eyJ[\w-]{20,}|://[^/\s:@]+:[^/\s@]+@", text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("memory: [1Gi, 2Gi]", "memory: [3Gi, 2Gi]"), "the request 3Gi is more than the limit 2Gi"),
        (("shm: 2Gi", "shm: 24Gi"), "which counts towards the limit 24Gi"),
        (("xception: [gpu, gpu-large]", "xception: [gpu-huge]"), "gpu-huge is no pool of this table"),
        (("  cnn: [gpu, gpu-large]\n", ""), "must be exactly cnn, resnet50, xception"),
        (("secrets: [registry, webhook]", "secrets: [registry, pager]"), "pager is no secret of this table"),
        (("retries: 10", "retries: 10\n    patience: 3"), "tasks.train.patience: Extra inputs are not permitted"),
        (("user: 10001", "user: 0"), "run.user: Input should be greater than or equal to 1000"),
        (("cpu: [4, 8]", "cpu: [4, lots]"), "tasks.train.cpu.1"),
        (("tasks:", "task:"), "tasks.yaml: tasks: Field required"),
    ],
)
def test_a_table_that_is_wrong_names_the_field(tmp_path, change, message):
    path = tmp_path / "tasks.yaml"
    text = TABLE.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(InputError, match=re.escape(message)):
        read_table(path)
