"""The promotion policy: the repository's own can be read, and every fault is told by field."""

import pytest
import yaml
from pydantic import ValidationError

from dermaflow.errors import InputError
from dermaflow.policy import NEVER_WAIVED, policy_digest, read_policy
from tests.sources import ROOT

OURS = ROOT / "mlflow" / "policy.yaml"
BOUNDS = yaml.safe_load(OURS.read_text())["explanation"]


def write(folder, text=None, **changes):
    """Our policy with top-level fields changed (None takes a field out), or the given text."""
    values = {**yaml.safe_load(OURS.read_text()), **changes}
    path = folder / "policy.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in values.items() if value is not None}) if text is None else text
    )
    return path


def refusal(folder, text=None, **changes):
    path = write(folder, text, **changes)
    with pytest.raises(InputError) as caught:
        read_policy(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_repositorys_policy_is_strict_where_it_matters():
    policy = read_policy(OURS)
    assert policy.allow_synthetic is False
    assert policy.allow_dirty_commit is False
    assert policy.balanced_accuracy.estimate >= 0.5
    assert policy.balanced_accuracy.low <= policy.balanced_accuracy.estimate
    assert policy.melanoma_sensitivity.low is None
    assert policy.melanoma_at_specificity.specificity >= 0.9
    assert policy.calibration.max_ece <= 0.1
    assert 1 <= policy.max_looks <= 20
    assert not set(policy.waivable) & set(NEVER_WAIVED)
    assert 0 <= policy.margin_to_champion <= 0.05


def test_a_policy_can_not_be_changed_after_reading():
    with pytest.raises(ValidationError):
        read_policy(OURS).allow_synthetic = True


def test_a_bound_may_ask_for_nothing(tmp_path):
    policy = read_policy(write(tmp_path, auroc={"estimate": None}))
    assert (policy.auroc.estimate, policy.auroc.low) == (None, None)


def test_a_whole_number_is_a_number(tmp_path):
    assert read_policy(write(tmp_path, margin_to_champion=0)).margin_to_champion == 0


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"auroc": {"estimate": 1.7}}, "auroc.estimate", "less than or equal to 1"),
        ({"auroc": {"estimate": -0.1}}, "auroc.estimate", "greater than or equal to 0"),
        ({"auroc": {"estimat": 0.5}}, "auroc.estimat", "not permitted"),
        ({"auroc": 0.9}, "auroc", "object"),
        ({"auroc": None}, "auroc", "required"),
        ({"allow_synthetics": True}, "allow_synthetics", "not permitted"),
        ({"allow_synthetic": "no"}, "allow_synthetic", "valid boolean"),
        ({"allow_synthetic": 1}, "allow_synthetic", "valid boolean"),
        ({"margin_to_champion": "0.02"}, "margin_to_champion", "valid number"),
        ({"margin_to_champion": -0.02}, "margin_to_champion", "greater than or equal to 0"),
        ({"margin_to_champion": float("nan")}, "margin_to_champion", "nan"),
        ({"explanation": BOUNDS | {"max_additivity_error": 0}}, "explanation.max_additivity_error", "greater than 0"),
        ({"explanation": BOUNDS | {"min_on_lesion": 2}}, "explanation.min_on_lesion", "less than or equal to 1"),
        ({"explanation": {"max_additivity_error": 0.05}}, "explanation.min_on_lesion", "required"),
        ({"version": 1}, "version", "greater than or equal to 2"),
        ({"version": 3}, "version", "less than or equal to 2"),
        ({"use": "diagnosis"}, "use", "research"),
        ({"licences": {"CC0-1.0": ["diagnosis"]}}, "licences.CC0-1.0.0", "research"),
        ({"max_looks": 0}, "max_looks", "greater than or equal to 1"),
        ({"melanoma_at_specificity": {"estimate": 0.5}}, "melanoma_at_specificity.specificity", "required"),
        ({"calibration": {}}, "calibration.max_ece", "required"),
        ({"worst_subgroup": {"figure": "f1", "estimate": 0.5, "high": 0.5}}, "worst_subgroup.figure", "malignant_sensitivity"),
        ({"approvals": -1}, "approvals", "greater than or equal to 0"),
        ({"four_eyes": True}, "the file", "four_eyes needs approvals of at least 1"),
        ({"waivable": ["leakage"]}, "waivable.0", "allowed: data_validation"),
        ({"waivable": ["no such gate"]}, "waivable.0", "allowed: data_validation"),
    ],
)
def test_a_fault_is_told_with_its_field_and_what_is_allowed(tmp_path, changes, field, told):
    message = refusal(tmp_path, **changes)
    assert f"policy.yaml: {field}: " in message
    assert told in message


def test_all_faults_are_told_at_once(tmp_path):
    assert len(refusal(tmp_path, version=3, margin_to_champion=-1, extra=1).splitlines()) == 3


@pytest.mark.parametrize("text", ["", "- 1\n", "yes\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    refusal(tmp_path, text)


@pytest.mark.parametrize("text", ["[1", "a: b: c"])
def test_a_file_that_is_not_yaml_is_refused(tmp_path, text):
    assert "is not valid YAML" in refusal(tmp_path, text)


def test_a_date_is_refused_like_any_other_value(tmp_path):
    assert "version" in refusal(tmp_path, OURS.read_text().replace("version: 2", "version: 2026-01-01"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: No such file or directory; the repository's is mlflow/policy\.yaml"):
        read_policy(tmp_path / "nowhere.yaml")


def test_the_digest_follows_what_a_policy_says_not_how(tmp_path):
    ours = policy_digest(read_policy(OURS))
    assert policy_digest(read_policy(write(tmp_path))) == ours, "comments and order of fields count"
    assert policy_digest(read_policy(write(tmp_path, allow_synthetic=True))) != ours


@pytest.mark.parametrize("name", ["CC BY-NC 4.0", "CC-BY-NC-4.0", "cc by nc 4.0"])
def test_a_licence_is_known_however_its_name_is_written(name):
    assert read_policy(OURS).allows(name) == ("research",)


@pytest.mark.parametrize("name", ["CC BY-NC 3.0", "CC BY-NC-ND 4.0", "unknown", ""])
def test_a_licence_that_is_not_named_allows_nothing(name):
    assert read_policy(OURS).allows(name) == ()
