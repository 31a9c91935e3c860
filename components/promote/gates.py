"""The gates of a promotion policy: each asks one thing of the challenger and says what it saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from dermaflow.classes import MELANOMA
from dermaflow.policy import AtSpecificity, ExplanationBounds, Minimum, Policy, SubgroupBounds

Verdict = Literal["pass", "fail", "waived", "not_applicable"]
_UNKNOWN: dict[str, Any] = dict.fromkeys(("estimate", "low", "high"))


@dataclass(frozen=True)
class Gate:
    """A gate's answer: what was asked, what was measured (with its 95 % interval), and the verdict with its reason."""

    name: str
    estimate: float | None
    low: float | None
    high: float | None
    threshold: float | None
    verdict: Verdict
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The gate as JSON."""
        return asdict(self)


def judge(
    facts: Mapping[str, Any],
    commit: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    tested: Mapping[str, int],
    looks: int,
    policy: Policy,
    waivers: Mapping[str, str] | None = None,
) -> list[Gate]:
    """Every gate of the policy, in the order of dermaflow.policy.GATES.

    Parameters
    ----------
    facts: of the challenger, as its registration tells them.
    commit: `commit` and `dirty` of the code that ran.
    comparison: what comparison.json says; None where the challenger is the champion.
    tested: images that it was trained on although they were in test of an earlier version, by that version.
    looks: models that were judged on its test set, it among them.
    waivers: what a person said, by the gate that it is said of; one that the policy lets nobody waive is not heeded.
    """
    said = {gate: text for gate, text in (waivers or {}).items() if gate in policy.waivable}
    return [
        replace(gate, verdict="waived", reason=f"{gate.reason}; {said[gate.name]}")
        if gate.verdict == "fail" and gate.name in said
        else gate
        for gate in _judged(facts, commit, comparison, tested, looks, policy)
    ]


def _judged(
    facts: Mapping[str, Any],
    commit: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    tested: Mapping[str, int],
    looks: int,
    policy: Policy,
) -> list[Gate]:
    leaks = facts["splits"]["leakage"]["all"]["with_relative_in_train"]
    return [
        _fact("data_validation", holds=facts["data_validation"]["success"], reason="the data passed its blocking expectations"),
        _fact(
            "not_synthetic",
            holds=not facts["synthetic"] or policy.allow_synthetic,
            reason=(
                "synthetic images, which the policy allows"
                if facts["synthetic"] and policy.allow_synthetic
                else "images are of patients"
                if not facts["synthetic"]
                else "the model was trained on synthetic images"
            ),
        ),
        _fact("lesion_split", holds=facts["promotable_split"], reason=facts["mark"] or "split by lesion"),
        _fact("leakage", holds=leaks == 0, reason=f"{leaks} test images have a relative in train"),
        _fact(
            "never_tested",
            holds=not tested,
            reason="; ".join(f"{count} of its training images were in test of {name}" for name, count in tested.items())
            or "no training image was ever in test",
        ),
        _fact(
            "trained_model",
            holds=not facts["pipeline_check"],
            reason=(
                "the backbone is random: a check of the pipeline"
                if facts["pipeline_check"]
                else "no part of the model is random"
            ),
        ),
        _fact(
            "clean_commit",
            holds=commit["dirty"] is False or policy.allow_dirty_commit,
            reason=(
                f"commit {str(commit['commit'])[:12]}"
                + {True: " with uncommitted changes", False: "", None: ": not known"}[commit["dirty"]]
            ),
        ),
        _licence(facts["data"]["licence"], policy),
        _looks(looks, policy.max_looks),
        _at_least("balanced_accuracy", facts["test"]["overall"]["balanced_accuracy"], policy.balanced_accuracy),
        _at_least("auroc", facts["test"]["overall"]["auroc"], policy.auroc),
        _at_least("melanoma_sensitivity", _sensitivity(facts, MELANOMA), policy.melanoma_sensitivity),
        _at_specificity(facts, policy.melanoma_at_specificity),
        _calibration(facts["test"]["calibration"]["after"], policy.calibration.max_ece),
        _worst_subgroup(facts["test"]["subgroups"], policy.worst_subgroup),
        *_explained(facts["explanation"], policy.explanation),
        _against_champion(comparison, policy.margin_to_champion),
    ]


def _sensitivity(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Of a class, in test; not defined where the data do not have the class."""
    of_class = facts["test"]["per_class"].get(name)
    return of_class["sensitivity"] if of_class else _UNKNOWN


def _licence(licence: str, policy: Policy) -> Gate:
    uses = policy.allows(licence)
    allowed = ", ".join(uses) or "nothing that the policy knows of"
    return _fact("data_licence", holds=policy.use in uses, reason=f"{licence} allows {allowed}; the use is {policy.use}")


def _looks(looks: int, most: int | None) -> Gate:
    reason = f"{looks} models were judged on this test set, this one among them"
    verdict: Verdict = "not_applicable" if most is None else "pass" if looks <= most else "fail"
    if verdict == "fail":
        reason += "; the best of so many looks better than it is: a new test set is needed"
    return Gate("test_set_looks", looks, None, None, most, verdict, reason)


def _at_specificity(facts: Mapping[str, Any], minimum: AtSpecificity) -> Gate:
    """Sensitivity for melanoma at the threshold that validation images chose for the policy's specificity, and no other."""
    name, chosen = "melanoma_at_specificity", facts.get("thresholds", {}).get("specificity_on_validation")
    point = facts["test"]["operating_points"].get("melanoma")
    value = point["sensitivity"] if point else _UNKNOWN
    asked = minimum.estimate is not None or minimum.low is not None
    if asked and chosen != minimum.specificity:
        reason = f"thresholds were chosen for specificity {chosen}, the policy asks for {minimum.specificity:g}"
        return Gate(name, value["estimate"], value["low"], value["high"], minimum.estimate, "fail", reason)
    gate = _at_least(name, value, minimum)
    there = (
        ""
        if point is None or point["specificity"]["estimate"] is None
        else f" ({point['specificity']['estimate']:.3f} on test)"
    )
    return replace(
        gate, reason=f"sensitivity at specificity {minimum.specificity:g} on validation{there}: {_after(gate.reason)}"
    )


def _after(reason: str) -> str:
    return reason.partition(": ")[2]


def _calibration(after: Mapping[str, Any] | None, most: float | None) -> Gate:
    text = "expected calibration error after temperature"
    return _bounded("calibration", after["ece"] if after else _UNKNOWN, text, most=most)


def _worst_subgroup(subgroups: Mapping[str, Any], bounds: SubgroupBounds) -> Gate:
    """The subgroup that does worst, of those that are large enough for an interval; a small one says nothing either way."""
    name, figure = "worst_subgroup", bounds.figure.replace("_", " ")
    known = dict(_of_subgroups(subgroups, bounds.figure))
    threshold = bounds.high if bounds.estimate is None else bounds.estimate
    if threshold is None or not known:
        reason = "no subgroup is large enough for an interval" if not known else "the policy asks for nothing"
        return Gate(name, None, None, None, threshold, "not_applicable", reason)
    low = [
        group
        for group, value in known.items()
        if (bounds.estimate is not None and value["estimate"] < bounds.estimate)
        or (bounds.high is not None and value["high"] < bounds.high)
    ]
    worst = min(low or known, key=lambda group: (known[group]["estimate"], group))
    value = known[worst]
    among = f"worst of {len(known)} subgroups that are" if len(known) > 1 else "only subgroup that is"
    reason = f"{figure} of {worst}, the {among} large enough for an interval"
    if low:
        reason += f"; below what is asked: {', '.join(sorted(low))}"
    return Gate(name, value["estimate"], value["low"], value["high"], threshold, "fail" if low else "pass", reason)


def _of_subgroups(subgroups: Mapping[str, Any], figure: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for attribute, members in subgroups.items():
        for group, values in members.items():
            malignant = values.get("malignant", {}).get("sensitivity", _UNKNOWN)  # some classes can not answer that question
            of_group = malignant if figure == "malignant_sensitivity" else values[figure]
            if of_group["low"] is not None:
                yield f"{attribute.replace('_', ' ')} {group}", of_group


def _fact(name: str, *, holds: bool, reason: str) -> Gate:
    return Gate(name, None, None, None, None, "pass" if holds else "fail", reason)


def _at_least(name: str, value: Mapping[str, Any], minimum: Minimum) -> Gate:
    asked = [(end, bound) for end, bound in (("estimate", minimum.estimate), ("low", minimum.low)) if bound is not None]
    missed = [f"{end} below {bound:g}" for end, bound in asked if value[end] is None or value[end] < bound]
    reason = (
        "; ".join(missed) or "; ".join(f"{end} at least {bound:g}" for end, bound in asked) or "the policy asks for nothing"
    )
    verdict: Verdict = "fail" if missed else "pass" if asked else "not_applicable"
    return Gate(name, value["estimate"], value["low"], value["high"], minimum.estimate, verdict, f"test {name}: {reason}")


def _explained(explanation: Mapping[str, Any], bounds: ExplanationBounds) -> list[Gate]:
    """What the maps must be worth, as the explanation itself tells."""
    overall, stages = explanation["summary"]["overall"], explanation["checks"]["randomisation"]["stages"]
    additivity = {"estimate": explanation["additivity"]["median"], "low": None, "high": None}
    return [
        _bounded(
            "explanation_additivity", additivity, "median relative error of the SHAP sums", most=bounds.max_additivity_error
        ),
        _on_lesion(explanation["summary"]["by_evidence"], bounds.min_on_lesion),
        _bounded(
            "explanation_insertion",
            overall["insertion_over_random"],
            "how much sooner the answer comes back in the map's order than in random order",
            least=bounds.min_insertion_over_random,
        ),
        _bounded(
            "explanation_randomisation",
            stages[-1]["similarity"],
            "rank correlation to the maps of the network with every kernel shuffled",
            most=bounds.max_similarity_shuffled,
        ),
        _bounded(
            "explanation_stability",
            overall["stability"],
            "rank correlation to the maps against another background",
            least=bounds.min_stability,
        ),
    ]


def _on_lesion(by_evidence: Mapping[str, Any], least: float | None) -> Gate:
    """The class whose evidence lies least on the lesion, of those with enough lesions."""
    known = {name: values["on_lesion"] for name, values in by_evidence.items() if values["on_lesion"]["low"] is not None}
    if not known:
        reason = "no class has enough of the explained lesions, of its own or taken for it"
        return Gate("explanation_on_lesion", None, None, None, least, "not_applicable", reason)
    worst = min(known, key=lambda name: known[name]["estimate"])
    text = f"of the {len(known)} classes with enough lesions, what speaks for {worst} lies least on the lesion"
    missed = [name for name, value in known.items() if least is not None and value["estimate"] < least]
    hint = f"; look at the maps of {', '.join(missed)} for an artefact" if missed else ""
    return _bounded("explanation_on_lesion", known[worst], text + hint, least=least)


def _bounded(name: str, value: Mapping[str, Any], text: str, *, least: float | None = None, most: float | None = None) -> Gate:
    """A gate on an estimate; one that is not known does not pass."""
    asked, estimate = least if most is None else most, value["estimate"]
    if asked is None:
        verdict: Verdict = "not_applicable"
    else:
        holds = estimate is not None and (estimate >= asked if most is None else estimate <= asked)
        verdict = "pass" if holds else "fail"
    return Gate(name, estimate, value["low"], value["high"], asked, verdict, text)


def _against_champion(comparison: Mapping[str, Any] | None, margin: float) -> Gate:
    name = "not_worse_than_champion"
    if comparison is None or comparison["champion"] is None:
        reason = "it is the champion" if comparison is None else str(comparison["undefined"])
        return Gate(name, None, None, None, -margin, "not_applicable", reason)
    difference = comparison["difference"] or _UNKNOWN
    holds = difference["low"] is not None and difference["low"] >= -margin
    left_out = sum(comparison["left_out"].values())
    reason = comparison["undefined"] or (
        f"paired difference in balanced accuracy on {comparison['images']} test images"
        + (f" ({left_out} left out: one of the two was trained on them)" if left_out else "")
        + f", low end {'within' if holds else 'beyond'} the margin"
    )
    return Gate(
        name, difference["estimate"], difference["low"], difference["high"], -margin, "pass" if holds else "fail", reason
    )
