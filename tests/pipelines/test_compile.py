"""The compiled pipeline: light and repeatable to compile, a GPU for every training, nothing private in it."""

import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components import BEFORE, OUT_OF_FOLD, STEPS, TASKS, module_of
from dermaflow.errors import InputError
from dermaflow.params import Section, load_params
from pipelines.graph import compile_to, tasks
from pipelines.provision import read_table
from tests.sources import ROOT

LIGHT = ("tensorflow", "keras", "great_expectations", "cv2", "mlflow", "shap", "sklearn", "matplotlib")
NEVER_CACHED = {"compare", "register", "promote", "notify"}
UPSTREAM = {  # what a step must wait for: the gate before everything, the split before augmentation, truth before claims
    "validate": {"ingest"},
    "segment": {"ingest", "validate"},
    "split": {"ingest", "validate"},
    "validate-splits": {"ingest", "split"},
    "augment": {"split", "validate-splits"},
    "validate-masks-and-plan": {"segment", "augment", "validate-splits"},
    "train": {"segment", "split", "augment", "validate-masks-and-plan"},
    "evaluate": {"train"},
    "validate-predictions": {"split", "evaluate"},
    "select": {"train", "evaluate", "validate-predictions"},
    "explain": {"select"},
    "register": {"validate", "validate-splits", "validate-masks-and-plan", "validate-predictions", "explain", "select"},
    "promote": {"register"},
}


def compiled(path, *overrides, profile="default"):
    """Text of the IR, compiled in the project's root."""
    compile_to(path, load_params(profile, overrides))
    return path.read_text()


@pytest.fixture(scope="module", autouse=True)
def in_root():
    before = Path.cwd()
    os.chdir(ROOT)
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("compiled") / "dermaflow.yaml")


@pytest.fixture(scope="module")
def spec(text):
    return next(yaml.safe_load_all(text))


@pytest.fixture(scope="module")
def listed():
    return {task["name"]: task for task in tasks(load_params())}


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """The graph with three folds: its IR, and its tasks by name."""
    path = tmp_path_factory.mktemp("folded") / "dermaflow.yaml"
    compiled(path, "split.folds=3")
    listed = {task["name"]: task for task in tasks(load_params("default", ["split.folds=3"]))}
    return next(yaml.safe_load_all(path.read_text())), listed


def default_of(spec, name):
    return spec["root"]["inputDefinitions"]["parameters"][name]["defaultValue"]


def trained(spec):
    return [item["architecture"] for item in default_of(spec, "architectures")]


# --- what is in it ---


def test_every_task_is_in_it_once(listed, spec):
    assert sorted(listed) == sorted(TASKS)
    assert len(TASKS) == len(spec["deploymentSpec"]["executors"]) == 16


def test_every_training_asks_for_a_gpu_and_nothing_else_does(listed, spec):
    training = [name for name in spec["deploymentSpec"]["executors"] if name.startswith("exec-train")]
    assert training
    for name, executor in spec["deploymentSpec"]["executors"].items():
        accelerator = executor["container"].get("resources", {}).get("accelerator")
        if name in training:
            assert accelerator["resourceType"] == "nvidia.com/gpu"
            assert int(accelerator["resourceCount"]) == 1
        else:
            assert accelerator is None
    assert {name for name, task in listed.items() if task["gpu"]} == {"train"}


def test_what_writes_to_the_registry_or_tells_people_is_never_answered_from_the_cache(listed):
    assert {name for name, task in listed.items() if not task["cached"]} == NEVER_CACHED


def readers(spec, listed):
    """Each task with the tasks whose artifacts it reads, straight from the compiled inputs."""
    found = {}

    def walk(dag, given):
        for name, task in dag["tasks"].items():
            sources = {}
            for put, said in task.get("inputs", {}).get("artifacts", {}).items():
                made = said.get("taskOutputArtifact")
                inner = made and spec["components"][dag["tasks"][made["producerTask"]]["componentRef"]["name"]].get("dag")
                if inner:  # what a loop collects
                    chosen = inner["outputs"]["artifacts"][made["outputArtifactKey"]]["artifactSelectors"]
                    sources[put] = {selector["producerSubtask"] for selector in chosen}
                else:
                    sources[put] = {made["producerTask"]} if made else given[said["componentInputArtifact"]]
            component = spec["components"][task["componentRef"]["name"]]
            if "dag" in component:
                walk(component["dag"], sources)
            else:
                found[name] = set().union(*sources.values()) if sources else set()

    walk(spec["root"]["dag"], {})
    assert set(found) == set(listed)
    return found


GATE_OF = {  # of what a step makes
    "ingest": "validate",
    "split": "validate-splits",
    "segment": "validate-masks-and-plan",
    "augment": "validate-masks-and-plan",
    "evaluate": "validate-predictions",
}


@pytest.mark.parametrize("folds", [0, 3])
def test_whatever_reads_an_artifact_comes_after_the_artifacts_gate(spec, listed, folded, folds):
    spec, listed = folded if folds else (spec, listed)

    def before(name):
        direct = set(listed[name]["after"])
        return direct.union(*(before(other) for other in direct)) if direct else direct

    gated = 0
    for name, makers in readers(spec, listed).items():
        for maker in makers & GATE_OF.keys():
            if not name.startswith("validate"):
                assert GATE_OF[maker] in before(name), f"{name} reads what {maker} makes before {GATE_OF[maker]}"
                gated += 1
    assert gated >= 15
    assert GATE_OF["split"] in before("validate-masks-and-plan")


def test_the_paper_profile_balances_checked_originals_before_everything_else():
    listed = {task["name"]: task for task in tasks(load_params("paper"))}
    assert list(listed) == [*BEFORE, *TASKS]
    assert listed["validate-originals"]["after"] == ["ingest-originals"]
    assert listed["balance"]["after"] == ["ingest-originals", "validate-originals"]
    assert listed["ingest"]["after"] == ["balance"]
    assert all(listed[name]["cached"] for name in BEFORE)


def test_with_folds_each_is_held_out_from_a_model_of_each_architecture(spec, folded):
    ir, listed = folded
    at = TASKS.index("register")
    assert list(listed) == [*TASKS[:at], *OUT_OF_FOLD, *TASKS[at:]]
    waits = {"split-fold": "split", "augment-fold": "split-fold", "train-fold": "augment-fold", "evaluate-fold": "train-fold",
             "pool": "evaluate-fold", "register": "pool"}  # fmt: skip
    assert all(earlier in listed[name]["after"] for name, earlier in waits.items())
    assert "validate-masks-and-plan" in listed["split-fold"]["after"]
    assert all(listed[name]["cached"] for name in OUT_OF_FOLD)
    assert {name for name, task in listed.items() if task["gpu"]} == {"train", "train-fold"}
    loops = {
        task["taskInfo"]["name"]: (task, ir["components"][task["componentRef"]["name"]]["dag"]["tasks"])
        for component in ir["components"].values() for task in component.get("dag", {}).get("tasks", {}).values()
        if "parameterIterator" in task
    }  # fmt: skip
    assert set(loops) == {"architectures", "out-of-fold", "folds"}
    assert json.loads(loops["folds"][0]["parameterIterator"]["items"]["raw"]) == [0, 1, 2]
    assert set(loops["folds"][1]) == set(OUT_OF_FOLD[:-1])
    assert OUT_OF_FOLD[-1] in loops["out-of-fold"][1]
    assert not any("fold" in name for name in spec["components"])


@pytest.mark.parametrize("step", UPSTREAM)
def test_a_step_waits_for_what_it_rests_on(listed, step):
    assert UPSTREAM[step] <= set(listed[step]["after"])


def test_the_outcome_is_told_whatever_happened(spec):
    notify = spec["root"]["dag"]["tasks"]["notify"]
    assert notify["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_each_architecture_is_a_task_of_its_own(spec):
    (loop,) = (
        task for component in spec["components"].values() for task in component.get("dag", {}).get("tasks", {}).values()
        if "parameterIterator" in task
    )  # fmt: skip
    inside = spec["components"][loop["componentRef"]["name"]]["dag"]["tasks"]
    assert set(inside) == {"train", "evaluate"}


def test_every_task_says_what_it_is_in_words(spec):
    names = [
        task["taskInfo"]["name"]
        for dag in [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
        for task in dag["tasks"].values()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    ]
    assert len(set(names)) == len(TASKS)
    assert all(name[0].isupper() for name in names)


def test_no_step_installs_anything_when_it_runs(text):
    assert "pip install" not in text
    assert "ensurepip" not in text


def test_every_image_is_named_with_a_version(listed):
    for task in listed.values():
        assert re.fullmatch(r"[\w./-]+(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", task["image"])
        assert ":" in task["image"]
        assert not task["image"].endswith(":latest")


# --- its parameters ---


@pytest.mark.parametrize("profile", ["default", "quick"])
def test_parameters_default_to_the_profiles_values(tmp_path, profile):
    params = load_params(profile)
    spec = next(yaml.safe_load_all(compiled(tmp_path / "p.yaml", profile=profile)))
    for name in ("data", "segment", "split", "augment", "mixup", "evaluate", "explain", "promote"):
        section = getattr(params, name)
        assert type(section).from_json(default_of(spec, name)) == section
    for name in ("validate", "register"):
        section = getattr(params, f"{name}_")
        assert type(section).from_json(default_of(spec, name)) == section
    assert trained(spec) == list(params.train.architectures)
    assert default_of(spec, "profile") == profile
    train = type(params.train).from_json(default_of(spec, "train"))
    assert train.model_copy(update={"architectures": params.train.architectures}) == params.train
    assert type(params).model_validate_json(default_of(spec, "params")) == params


def test_a_setting_arrives_in_the_compiled_defaults(tmp_path):
    spec = next(yaml.safe_load_all(compiled(tmp_path / "p.yaml", "train.epochs=3", "train.architectures=[cnn]")))
    assert json.loads(default_of(spec, "train"))["epochs"] == 3
    assert trained(spec) == ["cnn"]


def test_naming_another_architecture_changes_no_input_of_those_there_are(tmp_path):
    """Otherwise adding a third network would train the first two again."""
    one = next(yaml.safe_load_all(compiled(tmp_path / "one.yaml", "train.architectures=[cnn]")))
    two = next(yaml.safe_load_all(compiled(tmp_path / "two.yaml", "train.architectures=[cnn, xception]")))
    assert default_of(one, "train") == default_of(two, "train")


def test_every_section_of_the_parameters_is_a_pipeline_parameter(spec):
    params = load_params()
    sections = {
        (f.alias or name) for name, f in type(params).model_fields.items() if isinstance(getattr(params, name), Section)
    }
    assert sections <= set(spec["root"]["inputDefinitions"]["parameters"])


# --- the file ---


def test_compiling_twice_gives_the_same_bytes(text, tmp_path):
    assert compiled(tmp_path / "again.yaml") == text


def test_compiling_in_another_process_gives_the_same_bytes(text, tmp_path):
    """With another seed of Python's hashes, from which the order of sets follows."""
    output = tmp_path / "again.yaml"
    program = f"""
import sys
from pathlib import Path
from dermaflow.params import load_params
from pipelines.graph import compile_to
compile_to(Path({str(output)!r}), load_params())
print(*[name for name in {LIGHT!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )  # fmt: skip
    assert output.read_text() == text
    assert done.stdout.split() == [], "compiling imports what only a step's work needs"


def test_the_file_is_small(text):
    assert len(text.encode()) < 256 * 1024


def test_no_path_of_this_machine_is_in_it(text):
    for place in {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix, str(Path.cwd()), platform.node()} - {"/"}:
        assert not re.search(rf"(?<![\w.-]){re.escape(place)}(?![\w-])", text), place
    assert re.findall(r"(?:^|[\s\"'=])(/(?:home|root|Users|work|tmp|mnt|data|opt)/[\w./-]+)", text) == []


def entropy(word):
    """Bits per character."""
    return -sum(word.count(c) / len(word) * math.log2(word.count(c) / len(word)) for c in set(word))


def test_nothing_in_it_looks_like_a_secret(text):
    known = r"AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|-----BEGIN|xox[bp]-|eyJ[\w-]{20,}|://[^/\s:@]+:[^/\s@]+@"
    assert re.findall(known, text) == []
    said = re.findall(r"(?i)\b\w*(?:password|passwd|secret|api_?key|access_?key|token)\w*\b\s*[:=]\s*([^\s,;)]+)", text)
    secrets = read_table().run.secrets.values()  # names and keys, and what KFP writes before them
    assert set(said) <= {"-", "runtimeValue:"}.union(*({secret.name, *(secret.env or ())} for secret in secrets))
    digests = set(re.findall(r"sha256:[0-9a-f]{64}", text))
    words = re.findall(r"[A-Za-z0-9+/=_-]{32,}", re.sub(r"sha256:[0-9a-f]{64}", "", text))
    assert [word for word in words if entropy(word) > 4.5 and any(c.isdigit() for c in word)] == []
    assert len(digests) >= 9, "the code digests of the cached steps"


def test_a_file_that_kfp_would_not_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"pipeline\.json: KFP reads IR from files named \.yaml"):
        compile_to(tmp_path / "pipeline.json", load_params())


def test_a_place_that_can_not_be_written_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="can not be written"):
        compile_to(tmp_path / "file" / "p.yaml", load_params())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_folders_are_made_and_nothing_is_left_beside_the_file(tmp_path):
    compiled(tmp_path / "new" / "p.yaml")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.yaml"]


# --- the folders of the steps ---


@pytest.mark.parametrize("step", STEPS)
def test_each_step_has_the_same_files(step):
    folder = ROOT / "components" / step
    for name in ("core.py", "component.py", "__main__.py", "README.md"):
        assert (folder / name).is_file(), f"{step} lacks {name}"


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_component_and_a_command(task):
    folder = ROOT.joinpath("components", *module_of(task).split("."))
    for name in ("component.py", "__main__.py"):
        assert (folder / name).is_file(), f"{task} lacks {name}"


@pytest.mark.parametrize("step", STEPS)
def test_a_component_is_thin(step):
    for path in (ROOT / "components" / step).rglob("component.py"):
        assert len(path.read_text().splitlines()) <= 47, path  # register's signature alone has 23 lines


def test_the_steps_are_the_folders_there_are():
    assert set(STEPS) == {path.parent.name for path in (ROOT / "components").glob("*/component.py")}


def test_a_folder_in_the_files_place_is_refused_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "p.yaml" / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match="can not be written"):
        compile_to(tmp_path / "p.yaml", load_params())
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]
