"""kill -9 between each two writes of register, promote and rollback: verify tells, --repair mends, nothing is lost.

And many at once: one wins, the others are told. The work is done in forked processes, which are spared the imports.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.compare.core import compare
from components.promote.core import promote as promote_step
from components.register.core import Evidence, register
from dermaflow.errors import DermaflowError
from dermaflow.ledger import HeadMovedError, Ledger
from dermaflow.params import PromoteParams
from dermaflow.policy import read_policy
from pipelines.acting import promote, roll_back
from pipelines.verification import verify
from tests.registries import COMMIT, EVALUATE, Registry, answering, make_registry, run_promotions
from tests.s3_server import S3Server

AT_ONCE = 16
LOST, BROKEN = 7, 9  # exit codes of a process that was told that another was first, and of one that failed otherwise
WRITES = (
    *("create_registered_model", "create_model_version", "set_registered_model_alias", "delete_registered_model_alias"),
    *("set_model_version_tag", "log_dict"),
)


def killed_after(number: int) -> None:
    """Let this process die by SIGKILL once it has written so often: to the ledger, or to MLflow by one of WRITES."""
    from mlflow import MlflowClient

    left = [number]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            done = real(*arguments, **options)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return wrapper

    os.link = counted(os.link)
    for name in WRITES:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))


def started(work: Callable[[], Any], *, kill_after: int | None = None) -> int:
    """Do work in a process of its own; its id."""
    child = os.fork()
    if child:
        return child
    code = 0
    try:
        if kill_after is not None:
            killed_after(kill_after)
        work()
    except HeadMovedError:
        code = LOST
    except BaseException:  # noqa: BLE001 - whatever it is, the process ends here
        traceback.print_exc()
        code = BROKEN
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Its exit code; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(made: Registry, work: Callable[[Registry], Any], scratch: Path) -> Iterator[tuple[Registry, int]]:
    """A copy of the registry for each write of `work`, in which it was killed after that write; until it gets through."""
    for number in range(1, 30):
        copy = made.copy(scratch / f"killed-{number}")
        code = ended(started(lambda copy=copy: work(copy), kill_after=number))  # type: ignore[misc]
        if code == 0:
            assert number > 2, "nothing was written"
            return
        assert code == -signal.SIGKILL, "it failed by itself"
        yield copy, number
    raise AssertionError("it never got through")


def names(made: Registry) -> set[str]:
    return {finding.name for finding in verify((), made.params(), every=True).findings}


def mended(made: Registry) -> None:
    told = verify((), made.params(), every=True, repair=True)
    assert told.findings == []
    assert names(made) == set()


@pytest.fixture(scope="module")
def evidence(finished_evidence: Evidence) -> Evidence:
    return replace(finished_evidence, commit=COMMIT)


@pytest.fixture(scope="module")
def candidates(new_registry: Path, evidence: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry with two candidates and no champion."""
    scratch = tmp_path_factory.mktemp("candidates")
    made = make_registry(new_registry, scratch / "registry")
    another = replace(answering(evidence, scratch / "another", right=1.0), run_id="another")
    run_promotions(made, [evidence, another], scratch, mode="dry_run")
    return made


def test_a_promotion_that_is_killed(candidates: Registry, tmp_path: Path):
    seen = []
    for made, _ in killed(candidates, lambda made: promote("dermaflow-candidate/2", made.params()), tmp_path):
        promoted = "promotion" in made.kinds()
        seen.append(names(made))
        mended(made)
        assert made.champion() == (1 if promoted else None)
        again = promote("dermaflow-candidate/2", made.params())["outcome"]
        assert again == ("already_champion" if promoted else "promoted")
        assert made.kinds().count("promotion") == 1
    assert seen == [
        set(),  # the decision stands in the ledger: nothing is to be moved yet
        {"version_missing", "champion_moved"},  # the promotion does
        {"version_missing", "champion_moved"},  # the model dermaflow was made
        {"champion_moved"},  # the copy was made
        set(),  # the alias was moved
    ]


def test_a_rollback_that_is_killed(two_champions: Registry, tmp_path: Path):
    seen = []
    for made, _ in killed(two_champions, lambda made: roll_back(1, "worse", made.params()), tmp_path):
        seen.append(names(made))
        mended(made)
        assert made.champion() == 1, "the ledger says so"
    assert seen == [{"champion_moved"}, set()]


def test_a_pipelines_promotion_that_is_killed(new_registry: Path, evidence: Evidence, tmp_path: Path):
    made = make_registry(new_registry, tmp_path / "registry")
    compare(
        evidence.dataset, evidence.splits, evidence.masks, evidence.evaluation, EVALUATE, made.settings, tmp_path / "comparison"
    )
    register(replace(evidence, comparison=tmp_path / "comparison"), made.settings, tmp_path / "registration")

    def work(made: Registry, target: Path | None = None) -> dict[str, Any]:
        places = tmp_path / "registration", tmp_path / "comparison"
        params = PromoteParams(mode="enabled", policy=str(made.policy))
        return promote_step(
            *places, read_policy(made.policy), COMMIT, params, made.settings, target or made.folder / "decision"
        )

    seen = []
    for copy, number in killed(made, work, tmp_path):
        promoted = "promotion" in copy.kinds()
        seen.append(names(copy))
        mended(copy)
        assert copy.champion() == (1 if promoted else None)
        if number == 1:  # the run goes on
            assert work(copy)["outcome"] == "promoted"
            assert names(copy) == set()
    undecided = {"tag_changed", "decision_differs"}
    assert seen == [
        undecided,  # the decision stands in the ledger
        {"version_missing", "champion_moved", *undecided},  # the promotion does
        {"version_missing", "champion_moved", *undecided},  # the model dermaflow was made
        {"champion_moved", *undecided},  # the copy was made
        undecided,  # the alias was moved
        {"decision_differs"},  # the candidate's tag was set
        set(),  # decision.json was written
    ]


def test_a_registration_that_is_killed(new_registry: Path, evidence: Evidence, tmp_path: Path):
    made = make_registry(new_registry, tmp_path / "registry")
    seen = []
    for copy, number in killed(made, lambda made: register(evidence, made.settings, made.folder / "registration"), tmp_path):
        seen.append(names(copy))
        if number % 2:  # by whoever registers the same again, and by --repair
            mended(copy)
        told = register(evidence, copy.settings, copy.folder / "again")
        assert told["version"] == 1
        assert copy.kinds().count("registration") == copy.kinds().count("evaluation") == 1
        assert names(copy) == set()
    assert seen == [
        set(),  # the model dermaflow-candidate was made
        set(),  # the look stands in the ledger
        {"version_missing"},  # the registration does
        {"challenger_moved"},  # the version was made
        set(),  # the alias was moved
    ]


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_promotions_at_the_same_time(
    candidates: Registry, tmp_path: Path, place: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    made = candidates.copy(tmp_path / "registry")
    ledger = made.ledger
    if place == "s3":
        server: S3Server = request.getfixturevalue("s3")
        server.make_bucket("promotions")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        there = f"s3://promotions/{tmp_path.name}"
        server.upload(made.folder / "ledger", "promotions", tmp_path.name)
        for module in ("acting", "verification"):
            monkeypatch.setattr(f"pipelines.{module}.open_ledger", lambda register: Ledger(there))
        ledger = Ledger(there)
    before = ledger.entries()
    models = [f"dermaflow-candidate/{1 + number % 2}" for number in range(AT_ONCE)]
    children = [started(lambda model=model: promote(model, made.params())) for model in models]  # type: ignore[misc]
    codes = [ended(child) for child in children]
    assert BROKEN not in codes
    entries, faults = ledger.look()
    assert faults == []
    assert entries[: len(before)] == before
    fresh = [entry.kind for entry in entries[len(before) :]]
    promoted = [entry for entry in entries if entry.kind == "promotion"]
    # one that comes late judges anew against the champion of then, and may be refused or better
    assert 1 <= len(promoted) <= 2
    assert fresh.count("decision") + codes.count(LOST) >= AT_ONCE
    told = verify((), made.params(), every=True)
    assert [finding.name for finding in told.findings] == []
    in_use = promoted[-1].body["candidate"]["version"]
    copy = made.client.get_model_version_by_alias("dermaflow", "champion")
    assert copy.tags["dermaflow.copied_from"] == f"dermaflow-candidate/{in_use}"


def test_one_of_two_wins_and_the_other_is_told(two_champions: Registry, tmp_path: Path):
    """Both go back at the same moment, to the same version."""
    made = two_champions.copy(tmp_path / "registry")
    children = [started(lambda: roll_back(1, "worse", made.params())) for _ in range(2)]
    codes = sorted(ended(child) for child in children)
    assert codes[0] == 0
    assert codes[1] in (LOST, BROKEN)  # BROKEN: it came so late that version 1 was champion already
    assert made.kinds().count("rollback") == 1
    assert made.champion() == 1
    assert names(made) == set()


def test_the_same_registered_at_the_same_time(new_registry: Path, evidence: Evidence, tmp_path: Path):
    """Every process finds the version missing when it comes to make it; one counts, and the others take theirs away."""
    made = make_registry(new_registry, tmp_path / "registry")
    children = [
        started(lambda number=number: register(evidence, made.settings, tmp_path / f"r{number}"))  # type: ignore[misc]
        for number in range(4)
    ]
    assert [ended(child) for child in children] == [0] * 4
    assert made.kinds() == ["evaluation", "registration"]
    assert len(made.client.search_model_versions("name = 'dermaflow-candidate'")) == 1
    assert names(made) == set()


def test_errors_of_moving_are_told_to_people():
    assert issubclass(HeadMovedError, DermaflowError)
    assert HeadMovedError.exit_code == 1
