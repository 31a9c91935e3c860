"""Bad input ends in one clear message, exit code 2, and no registered version."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.workspace import TINY, Workspace, sets


def refused(workspace: Workspace, *arguments: str) -> str:
    """What the command says on stderr; it must refuse cleanly and leave nothing behind."""
    done = workspace.run("run", "--profile", "phantom", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error:") == 1
    assert not (workspace.path / ".dermaflow" / "mlflow.db").exists()
    assert not (workspace.path / "runs").exists()
    return " ".join(done.stderr.split())


def only_run(workspace: Workspace) -> Path:
    """The folder of the workspace's one run."""
    (run,) = (path for path in (workspace.path / "runs").iterdir() if not path.is_symlink())
    return run


def copy_source(workspace: Workspace, name: str) -> Path:
    """A copy of the phantoms that may be spoilt."""
    target = workspace.path / name
    shutil.copytree(workspace.path / "data" / "phantom", target)
    return target


def rewrite_metadata(source: Path, change) -> None:
    path = source / "HAM10000_metadata.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(table).to_csv(path, index=False)


def test_source_that_is_not_there(workspace: Workspace):
    assert "data.source: /nowhere is not a folder" in refused(workspace, *sets("data.source=/nowhere"))


def test_metadata_without_a_column(workspace: Workspace):
    source = copy_source(workspace, "spoilt")
    rewrite_metadata(source, lambda table: table.drop(columns="lesion_id"))
    said = refused(workspace, *sets("data.source=spoilt"))
    assert "HAM10000_metadata.csv lacks the column lesion_id" in said


def test_unknown_class_is_named_with_its_line_and_what_is_allowed(workspace: Workspace):
    source = copy_source(workspace, "spoilt")
    rewrite_metadata(source, lambda table: table.assign(dx=["wart", *table["dx"][1:]]))
    said = refused(workspace, *sets("data.source=spoilt"))
    assert "line 2: dx is 'wart'" in said
    assert "akiec, bcc, bkl, df, mel, nv, vasc" in said


def test_unknown_parameter_suggests_the_known_one(workspace: Workspace):
    said = refused(workspace, *sets("train.epocs=3"))
    assert "unknown parameter train.epocs" in said
    assert "did you mean 'epochs'?" in said


def test_negative_batch_size(workspace: Workspace):
    said = refused(workspace, *sets("train.batch_size=-1"))
    assert "train.batch_size is -1" in said
    assert "greater than or equal to 1" in said


def test_weights_that_are_not_there(workspace: Workspace):
    said = refused(workspace, *sets("train.weights.resnet50=missing.h5"))
    assert "train.weights.resnet50: missing.h5 is not a file" in said


def test_place_that_can_not_be_written(workspace: Workspace):
    (workspace.path / "occupied").write_text("a file where a folder should be")
    said = refused(workspace, *sets("register.tracking_uri=sqlite:///occupied/mlflow.db"))
    assert "can not write to occupied" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_write_permission(workspace: Workspace):
    workspace.path.chmod(0o555)
    try:
        assert "can not write to runs" in refused(workspace)
    finally:
        workspace.path.chmod(0o755)


def test_the_paper_profile_without_masks_to_cut_normal_skin_by(workspace: Workspace, phantoms: Path):
    shutil.copytree(phantoms, workspace.path / "unmasked", ignore=shutil.ignore_patterns("masks"))
    done = workspace.run("run", "--profile", "paper", *sets("data.source=unmasked"))
    assert done.returncode == 2
    assert "normal is cut from skin outside of expert masks, and these data have none" in done.stderr
    assert not (workspace.path / "runs").exists(), "work was begun"


def test_a_single_step_in_an_order_that_only_the_pipeline_has(workspace: Workspace):
    done = workspace.run("data", "prepare", "--profile", "paper", *sets("data.source=data/phantom"))
    assert done.returncode == 2
    assert "use dermaflow run --profile paper" in done.stderr
    assert not (workspace.path / "artifacts/dataset").exists()


def test_a_command_that_does_not_exist(workspace: Workspace):
    done = workspace.run("retrain")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_weights_that_do_not_fit_are_refused_before_any_work(workspace: Workspace):
    (workspace.path / "wrong.h5").write_bytes(b"these are no weights")
    said = refused(workspace, *sets("train.architectures=[resnet50]", "train.weights.resnet50=wrong.h5"))
    assert "train.weights.resnet50: wrong.h5 does not fit resnet50" in said


def test_a_step_that_refuses_ends_the_run_with_its_own_words_and_the_log(continued: Workspace):
    arguments = sets(*TINY, "train.architectures=[resnet50]", "train.batch_size=4000")
    done = continued.run("run", "--profile", "phantom", *arguments)
    assert done.returncode == 2, done.stderr
    assert "train.batch_size is 4000, but an epoch draws only 64 training images" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    run = only_run(continued)
    assert str(run / "run.log") in done.stderr.replace("\n", "")
    assert '"state": "FAILED"' in (run / "notify/notification/notification.json").read_text()
    assert continued.versions() == []


def test_a_step_that_breaks_shows_its_last_error_and_the_log(continued: Workspace):
    features = continued.path / ".dermaflow" / "cache" / "features"
    features.write_text("a file where the step makes a folder")
    arguments = sets(*TINY, "train.architectures=[xception]", "train.head_epochs=1")  # not what the finished run trained
    done = continued.run("run", "--profile", "phantom", *arguments)
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stderr.split())
    assert "train-xception" in said
    assert "NotADirectoryError" in said or "FileExistsError" in said
    assert "run.log" in said
    assert "Traceback" in (only_run(continued) / "run.log").read_text()  # a programmer's error keeps it, in the log


def test_a_blocking_expectation_stops_the_run(workspace: Workspace):
    source = copy_source(workspace, "spoilt")

    def two_diagnoses(table: pd.DataFrame) -> pd.DataFrame:
        lesion = table["lesion_id"].value_counts().index[0]
        first = table.index[table["lesion_id"] == lesion][0]
        table.loc[first, "dx"] = "mel" if table.loc[first, "dx"] != "mel" else "nv"
        return table

    rewrite_metadata(source, two_diagnoses)
    done = workspace.run("run", "--profile", "phantom", *sets(*TINY, "data.source=spoilt"))
    assert done.returncode == 1, done.stderr
    assert "one diagnosis for each lesion" in done.stderr
    run = only_run(workspace)
    assert (run / "validate/report/data_docs/index.html").exists()
    assert not (run / "split").exists()
    assert not (run / "train-cnn").exists()
