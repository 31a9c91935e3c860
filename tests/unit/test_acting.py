"""What people do to the registry: promote, approve, waive, roll back; each stands in the ledger."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest

from components.promote.core import promote as promote_step
from components.register.core import Evidence, register
from dermaflow.errors import GateError, InputError
from dermaflow.ledger import HeadMovedError, account
from dermaflow.params import PromoteParams
from dermaflow.policy import read_policy
from pipelines.acting import promote, roll_back, shown, waive
from pipelines.verification import verify
from tests.registries import COMMIT, Registry, answering, lenient_policy, make_registry, run_promotion, run_promotions

CANDIDATE = "dermaflow-candidate@challenger"
TOMORROW = (datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)).isoformat()


@pytest.fixture
def made(new_registry: Path, tmp_path: Path) -> Registry:
    """A registry without versions, under the tests' policy."""
    return make_registry(new_registry, tmp_path / "registry")


@pytest.fixture
def evidence(finished_evidence: Evidence) -> Evidence:
    return replace(finished_evidence, commit=COMMIT)


def holds(made: Registry) -> bool:
    told = verify((), made.params(), every=True)
    assert told.findings == []
    return told.ok


def test_a_run_leaves_a_look_a_registration_a_decision_and_a_promotion(made: Registry, evidence: Evidence, tmp_path: Path):
    decision = run_promotion(made, evidence, tmp_path)
    entries = made.ledger.entries()
    assert [entry.kind for entry in entries] == ["evaluation", "registration", "decision", "promotion"]
    look, registration, decided, promotion = entries
    assert look.body["models"] == ["cnn", "resnet50", "xception"], "a person saw the test figures of all three"
    assert registration.body["digests"]["predictions"] == look.body["predictions"]
    assert registration.actor == account()
    assert decided.body["gates"] == decision["gates"]
    assert decided.body["policy"]["content"]["allow_synthetic"] is True
    assert promotion.body["candidate"] == decision["candidate"]
    assert promotion.body["waived"] == ["not_synthetic"]
    assert decision["ledger"] == {"decision": 3, "promotion": 4}
    stored = made.client.get_model_version("dermaflow-candidate", "1")
    assert (stored.tags["dermaflow.ledger_entry"], stored.tags["dermaflow.decision"]) == ("2", "promoted")
    assert holds(made)


def test_the_same_again_is_another_decision_and_nothing_else(made: Registry, evidence: Evidence, tmp_path: Path):
    first, again = run_promotions(made, [evidence, replace(evidence, run_id="again")], tmp_path)
    assert (first["outcome"], again["outcome"]) == ("promoted", "already_champion")
    assert made.kinds() == ["evaluation", "registration", "decision", "promotion", "decision"]
    assert again["test_set"]["looks"] == 3
    assert holds(made)


def test_looks_at_a_test_set_are_counted_and_become_a_gate(made: Registry, evidence: Evidence, tmp_path: Path):
    made.write_policy(lenient_policy(max_looks=5))
    another = replace(answering(evidence, tmp_path / "another", right=1.0), run_id="another")
    first, second = run_promotions(made, [evidence, another], tmp_path)
    assert (first["test_set"]["looks"], second["test_set"]["looks"]) == (3, 6)
    assert (first["outcome"], second["refused_by"]) == ("promoted", ["test_set_looks"])
    gate = next(gate for gate in second["gates"] if gate["name"] == "test_set_looks")
    assert (gate["estimate"], gate["threshold"]) == (6, 5)
    assert holds(made)


def test_a_person_promotes_what_the_pipeline_left_in_a_dry_run(made: Registry, evidence: Evidence, tmp_path: Path):
    assert run_promotion(made, evidence, tmp_path, mode="dry_run")["outcome"] == "would_promote"
    assert made.champion() is None
    told = promote(CANDIDATE, made.params("promote.mode=dry_run"))
    assert (told["outcome"], told["champion"]) == ("promoted", {"name": "dermaflow", "version": 1})
    assert made.kinds()[-2:] == ["decision", "promotion"]
    assert made.ledger.entries()[-2].body["by"] == "person"
    assert told["entries"] == [4, 5]
    assert holds(made)
    assert promote(CANDIDATE, made.params())["outcome"] == "already_champion"


def test_a_dry_run_by_a_person_writes_nothing(made: Registry, evidence: Evidence, tmp_path: Path):
    run_promotion(made, evidence, tmp_path, mode="dry_run")
    before = made.kinds()
    told = promote(CANDIDATE, made.params(), dry_run=True, approver="ann")
    assert (told["outcome"], told["entries"]) == ("would_promote", [])
    assert (made.kinds(), made.champion()) == (before, None)


def test_disabled_promotion_moves_nothing_for_a_person_either(made: Registry, evidence: Evidence, tmp_path: Path):
    run_promotion(made, evidence, tmp_path, mode="dry_run")
    assert promote(CANDIDATE, made.params("promote.mode=disabled"))["outcome"] == "disabled"
    assert made.champion() is None


def test_a_person_is_refused_by_the_policy_as_the_pipeline_is(made: Registry, evidence: Evidence, tmp_path: Path):
    made.write_policy(lenient_policy(allow_synthetic=False))
    run_promotion(made, evidence, tmp_path)
    told = promote(CANDIDATE, made.params())
    assert (told["outcome"], told["refused_by"]) == ("refused", ["not_synthetic"])
    assert holds(made)


def test_people_are_waited_for_and_then_it_is_champion(made: Registry, evidence: Evidence, tmp_path: Path):
    made.write_policy(lenient_policy(approvals=2))
    assert run_promotion(made, evidence, tmp_path)["outcome"] == "awaiting_approval"
    assert promote(CANDIDATE, made.params())["outcome"] == "awaiting_approval"
    assert promote(CANDIDATE, made.params(), approver="ann")["outcome"] == "awaiting_approval"
    assert promote(CANDIDATE, made.params(), approver="ann")["approvals"]["given"] == ["ann"], "one person counts once"
    told = promote(CANDIDATE, made.params(), approver="ben")
    assert (told["outcome"], told["approvals"]["given"]) == ("promoted", ["ann", "ben"])
    assert made.kinds().count("approval") == 2
    assert made.ledger.entries()[-1].body["approved_by"] == ["ann", "ben"]
    assert holds(made)


def test_four_eyes_do_not_take_whoever_registered_it(made: Registry, evidence: Evidence, tmp_path: Path):
    made.write_policy(lenient_policy(approvals=1, four_eyes=True))
    run_promotion(made, evidence, tmp_path)
    with pytest.raises(InputError, match=r"this account registered the model, and the policy asks for four eyes"):
        promote(CANDIDATE, made.params(), approver=account())
    assert "approval" not in made.kinds()
    assert promote(CANDIDATE, made.params(), approver="somebody else")["outcome"] == "promoted"


def test_without_four_eyes_one_person_may_be_both_and_the_ledger_says_so(made: Registry, evidence: Evidence, tmp_path: Path):
    made.write_policy(lenient_policy(approvals=1))
    run_promotion(made, evidence, tmp_path)
    assert promote(CANDIDATE, made.params(), approver=account())["outcome"] == "promoted"
    approval = next(entry for entry in made.ledger.entries() if entry.kind == "approval")
    assert approval.body["same_person"] is True


def test_a_waiver_lets_a_gate_pass_with_its_reason(made: Registry, evidence: Evidence, tmp_path: Path):
    made.write_policy(lenient_policy(licences={}))
    assert run_promotion(made, evidence, tmp_path)["refused_by"] == ["data_licence"]
    entry = waive("data_licence", CANDIDATE, "permission by letter", TOMORROW, made.params())
    assert (entry.kind, entry.actor) == ("waiver", account())
    told = promote(CANDIDATE, made.params())
    assert told["outcome"] == "promoted"
    gate = next(gate for gate in told["gates"] if gate["name"] == "data_licence")
    assert gate["verdict"] == "waived"
    assert gate["reason"].endswith(f"waived until {TOMORROW} by {account()} (entry {entry.number}): permission by letter")
    assert set(told["waived"]) == {"not_synthetic", "data_licence"}
    assert made.client.get_model_version("dermaflow", "1").tags["dermaflow.waived"] == "not_synthetic, data_licence"
    assert holds(made)


@pytest.mark.parametrize(
    ("gate", "reason", "until", "told"),
    [
        ("leakage", "why not", TOMORROW, r"GATE 'leakage' can not be waived; .* allows: data_licence, "),
        ("data_licence", "  ", TOMORROW, "--reason: say why"),
        ("data_licence", "x", "soon", r"--until 'soon' is no day; write it as 20"),
        ("data_licence", "x", "2020-01-01", "is gone already"),
    ],
)
def test_a_waiver_needs_a_gate_a_reason_and_an_end(used: Registry, gate: str, reason: str, until: str, told: str):
    before = used.kinds()
    with pytest.raises(InputError, match=told):
        waive(gate, CANDIDATE, reason, until, used.params())
    assert used.kinds() == before


def test_roll_back_and_on_again(used: Registry):
    assert used.champion() == 2
    told = roll_back(None, "worse on new images", used.params())
    assert told == {
        "before": {"name": "dermaflow", "version": 2},
        "champion": {"name": "dermaflow", "version": 1},
        "entry": len(used.kinds()),
    }
    assert used.champion() == 1
    last = used.ledger.entries()[-1]
    assert (last.kind, last.body["reason"]) == ("rollback", "worse on new images")
    assert holds(used)
    with pytest.raises(InputError, match="is the first champion; say which version"):
        roll_back(None, "further", used.params())
    assert roll_back(2, "a mistake", used.params())["champion"]["version"] == 2
    assert holds(used)


@pytest.mark.parametrize(("to", "told"), [(2, "is champion already"), (9, "promoted no such version")])
def test_a_version_that_can_not_be_gone_back_to_is_refused(used: Registry, to: int, told: str):
    with pytest.raises(InputError, match=told):
        roll_back(to, "x", used.params())


def test_without_a_champion_nothing_is_rolled_back(made: Registry):
    with pytest.raises(InputError, match="there is no champion"):
        roll_back(None, "x", made.params())


def test_a_candidate_is_compared_with_the_champion_of_now(used: Registry):
    """The first candidate was compared with none when it was registered; now there is a better one."""
    told = promote("dermaflow-candidate/1", used.params())
    assert (told["outcome"], told["refused_by"]) == ("refused", ["not_worse_than_champion"])
    assert told["comparison"]["champion"] == {"name": "dermaflow", "version": 2}
    gate = next(gate for gate in told["gates"] if gate["name"] == "not_worse_than_champion")
    assert gate["estimate"] < 0
    assert holds(used)


def test_a_version_whose_evidence_was_changed_is_not_promoted(used: Registry):
    path = used.evidence(1) / "evidence.json"
    path.write_text(path.read_text().replace('"synthetic": true', '"synthetic": false'))
    with pytest.raises(GateError, match=r"evidence_changed: evidence/evidence.json was changed"):
        promote("dermaflow-candidate/1", used.params())


@pytest.mark.parametrize("model", ["dermaflow/1", "dermaflow@champion"])
def test_a_copy_is_not_promoted_again(used: Registry, model: str):
    with pytest.raises(InputError, match=r"is no candidate; .* dermaflow rollback --to VERSION"):
        promote(model, used.params())


def test_nothing_moves_while_the_alias_is_where_the_ledger_does_not_have_it(used: Registry):
    used.client.set_registered_model_alias("dermaflow", "champion", "1")
    before = used.kinds()
    with pytest.raises(
        HeadMovedError, match=r"alias champion is on dermaflow version 1, but by the ledger .*version 2.*--repair"
    ):
        roll_back(1, "x", used.params())
    assert used.kinds() == before


def test_a_pipeline_that_was_overtaken_is_told(made: Registry, evidence: Evidence, tmp_path: Path):
    """Between its decision and its promotion somebody else promotes."""
    run_promotion(made, evidence, tmp_path / "1", mode="dry_run")
    ledger = made.ledger
    real = ledger.append

    def overtaken(kind, *arguments, **options):
        entry = real(kind, *arguments, **options)
        if kind == "decision":
            promote(CANDIDATE, made.params())
        return entry

    ledger.append = overtaken  # type: ignore[method-assign]
    places = tmp_path / "1" / "registration", tmp_path / "1" / "comparison"
    params = PromoteParams(mode="enabled", policy=str(made.policy))
    with pytest.raises(HeadMovedError, match=r"moved the champion first \(promotion, entry 6 .*Nothing was moved"):
        promote_step(*places, read_policy(made.policy), COMMIT, params, made.settings, tmp_path / "late", ledger)
    assert made.champion() == 1
    assert made.kinds().count("promotion") == 1
    assert holds(made)


def test_a_version_tells_its_history(used: Registry):
    told = shown("dermaflow@champion", used.params())
    assert (told["name"], told["version"], told["aliases"]) == ("dermaflow", 2, ["champion"])
    assert told["copied_from"] == "dermaflow-candidate version 2"
    assert [entry["kind"] for entry in told["entries"]] == ["evaluation", "registration", "decision", "promotion"]
    assert told["looks"] == 6
    assert {gate["verdict"] for gate in told["gates"]} <= {"pass", "not_applicable"}
    assert json.dumps(told)


def test_two_that_register_the_same_at_a_time_get_one_version(made: Registry, evidence: Evidence, tmp_path: Path):
    """Both have stored it when the ledger takes the first; both go by that."""
    ledger = made.ledger
    real = ledger.append

    def overtaken(kind, *arguments, **options):
        if kind == "registration":
            register(evidence, made.settings, tmp_path / "first")
        return real(kind, *arguments, **options)

    ledger.append = overtaken  # type: ignore[method-assign]
    told = register(evidence, made.settings, tmp_path / "second", ledger)
    assert told["version"] == 1
    assert made.kinds() == ["evaluation", "registration"]
    assert holds(made)
