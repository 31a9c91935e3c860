"""A step's code digest: follows what the step imports, and nothing else. Tried on a copy of the tree, in a process."""

import json
import shutil
import subprocess
import sys

import pytest

from components import STEPS
from pipelines.code import _closure, code_digest
from tests.sources import ROOT

COPIED = ("components", "dermaflow", "pipelines", "requirements")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree") / "original"
    folder.mkdir()
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def tree(original, tmp_path):
    return shutil.copytree(original, tmp_path / "tree")


def digests(tree):
    """Digest of each step (and of the whole pipeline) as a process in that tree computes them."""
    program = f"""
import json
from pipelines.code import ROOT, code_digest, pipeline_digest
print(json.dumps({{"root": str(ROOT), "pipeline": pipeline_digest(), **{{step: code_digest(step) for step in {STEPS!r}}}}}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tree, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told.pop("root") == str(tree), "the copy was not what was imported"
    return told


@pytest.fixture(scope="module")
def before(original):
    return digests(original)


def changed(tree, before):
    after = digests(tree)
    return {name for name in before if before[name] != after[name]}


def edit(path, text="\nEDITED = 1\n"):
    path.write_text(path.read_text() + text)


def test_a_copy_has_the_digests_of_the_original(original, before):
    assert before == {**{step: code_digest(step) for step in STEPS}, "pipeline": before["pipeline"]}
    assert all(digest.startswith("sha256:") for digest in before.values())
    assert len(set(before.values())) == len(before)


def test_an_edit_of_a_steps_own_module_changes_that_step_alone(tree, before):
    edit(tree / "components" / "segment" / "kmeans_mask.py")
    assert changed(tree, before) == {"segment", "pipeline"}


def test_an_edit_of_the_wrapper_changes_the_step(tree, before):
    edit(tree / "components" / "split" / "component.py")
    assert changed(tree, before) == {"split", "pipeline"}


def test_an_edit_of_a_shared_module_changes_the_steps_that_import_it_and_no_others(tree, before):
    edit(tree / "dermaflow" / "augmentation.py")
    assert changed(tree, before) == {"augment", "balance", "train", "pipeline"}


def test_an_edit_of_a_module_imported_by_an_imported_module_counts(tree, before):
    """Split does not import architectures; it imports params, which does."""
    assert "architectures" not in (tree / "components" / "split" / "core.py").read_text()
    edit(tree / "dermaflow" / "architectures.py")
    assert {"split", "pipeline"} <= changed(tree, before)


def test_an_edit_of_a_suite_of_expectations_changes_validate_alone(tree, before):
    edit(tree / "components" / "validate" / "suites" / "manifest.json", "\n")
    assert changed(tree, before) == {"validate", "pipeline"}


def test_another_lock_of_libraries_changes_every_step(tree, before):
    edit(tree / "requirements" / "runtime.txt", "\nnumpy==1\n")
    assert changed(tree, before) == {*STEPS, "pipeline"}


def test_an_edit_of_what_no_step_imports_changes_none(tree, before):
    edit(tree / "dermaflow" / "phantom.py")
    edit(tree / "pipelines" / "show.py")
    edit(tree / "components" / "explain" / "README.md", "\nMore words.\n")
    (tree / "components" / "explain" / "__pycache__").mkdir()
    assert changed(tree, before) == set()


def test_an_edit_of_the_definition_changes_the_pipeline_and_no_step(tree, before):
    edit(tree / "pipelines" / "training.py")
    assert changed(tree, before) == {"pipeline"}


def test_a_new_import_brings_its_module_in(tree, before):
    (tree / "dermaflow" / "fresh.py").write_text("VALUE = 1\n")
    edit(tree / "components" / "notify" / "core.py", "\n\ndef fresh():\n    from dermaflow import fresh\n\n    return fresh\n")
    first = digests(tree)
    assert {name for name in before if before[name] != first[name]} == {"notify", "pipeline"}
    edit(tree / "dermaflow" / "fresh.py")
    assert changed(tree, first) == {"notify", "pipeline"}


def test_an_edit_of_a_packages_init_changes_the_steps(tree, before):
    edit(tree / "dermaflow" / "__init__.py")
    edit(tree / "components" / "split" / "__init__.py")
    assert changed(tree, before) >= {"split", "pipeline"}


@pytest.mark.parametrize("step", STEPS)
def test_no_step_imports_another(step):
    """Imports run downward only, so that a step's image and digest hold what it needs and no more."""
    own = (ROOT / "dermaflow", ROOT / "components" / step, ROOT / "components" / "__init__.py")
    modules = _closure(ROOT / "components" / step / "core.py") | _closure(ROOT / "components" / step / "component.py")
    strangers = [path.relative_to(ROOT).as_posix() for path in modules if not any(path.is_relative_to(place) for place in own)]
    assert strangers == []
