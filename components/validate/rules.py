"""Judge tables by a suite of expectations: which rule holds, and which rows do not hold it."""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from components.validate.tables.manifest import Tables
from dermaflow.errors import InputError

SUITES = Path(__file__).with_name("suites")
BLOCKING, WARNING = "critical", "warning"
ROWS_NAMED = 20  # failing rows listed for a rule; their number is always told
ONLY_WHEN_GIVEN = ("drift", "earlier", "relatives", "frozen")  # tables that need a reference
LEAKS_BY_DESIGN = "only a warning: split.strategy random leaks by design, and nothing made from it is promoted"
_RULES_AT_ONCE = 8  # of a table: Great Expectations holds columns of its own for each until all are judged
_IDS = ("architecture", "image_id", "lesion_id")


def suite_names() -> tuple[str, ...]:
    """The suites in the repository."""
    return tuple(sorted(path.stem for path in SUITES.glob("*.json")))


def read_suite(name: str) -> list[dict[str, Any]]:
    """The expectations of a suite, as Great Expectations' JSON has them."""
    expectations: list[dict[str, Any]] = json.loads((SUITES / f"{name}.json").read_text())["expectations"]
    return expectations


def judge(
    suite: str, tables: Tables, values: Mapping[str, Any], *, leak_is_blocking: bool = True, partly: bool = False
) -> list[dict[str, Any]]:
    """Judge tables by a suite.

    Parameters
    ----------
    tables: by the name that a rule's meta.table says.
    values: what `{"$PARAMETER": name}` in the suite stands for.
    leak_is_blocking: False turns rules marked as meta.leak into warnings, and says so.
    partly: leave out rules whose table or column is not there, instead of failing them.

    Returns
    -------
    A dict for each rule that was judged, in the order of the suite: suite, rule, statement (Great Expectations' words),
    expectation, table, column, level, success, failing (number of rows), rows (the first ROWS_NAMED of them, as text),
    error (when it could not be judged, else None), note.
    """
    rules = [rule for rule in read_suite(suite) if _is_given(rule, tables, partly=partly)]
    judged: dict[int, dict[str, Any]] = {}
    for name in dict.fromkeys(rule["meta"]["table"] for rule in rules):
        of_table = [(position, rule) for position, rule in enumerate(rules) if rule["meta"]["table"] == name]
        for start in range(0, len(of_table), _RULES_AT_ONCE):
            some = dict(of_table[start : start + _RULES_AT_ONCE])
            for position, result in _validate(name, tables[name], some, values).items():
                judged[position] = _describe(suite, result, tables[name], leak_is_blocking=leak_is_blocking)
    return [judged[position] for position in sorted(judged)]


def _is_given(rule: dict[str, Any], tables: Tables, *, partly: bool) -> bool:
    name, columns = rule["meta"]["table"], _columns(rule["kwargs"])
    if name not in tables:
        return not partly and name not in ONLY_WHEN_GIVEN
    return not partly or set(columns) <= set(tables[name].columns)


def _columns(kwargs: Mapping[str, Any]) -> list[str]:
    return [kwargs["column"]] if "column" in kwargs else list(kwargs.get("column_list", ()))


def _validate(name: str, table: pd.DataFrame, rules: dict[int, dict[str, Any]], values: Mapping[str, Any]) -> dict[int, Any]:
    """Great Expectations' result for each rule of a table, by the rule's position.

    It counts failing rows but does not list them: its lists hold every row of a table of 100,000, at 20 us a row.
    """
    gx = _great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    suite = gx.ExpectationSuite(
        name=name, expectations=[{**rule, "meta": {**rule["meta"], "position": position}} for position, rule in rules.items()]
    )
    used = sorted({column for rule in rules.values() for column in _columns(rule["kwargs"])} & set(table.columns))
    asset = context.data_sources.add_pandas("dermaflow").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all rows").get_batch({"dataframe": table[used]})
    found = batch.validate(
        suite, result_format={"result_format": "BASIC", "partial_unexpected_count": 0}, expectation_parameters=dict(values)
    )
    return {result.expectation_config.meta["position"]: result for result in found.results}


def _great_expectations() -> Any:
    """Great Expectations, imported without collecting garbage meanwhile: a quarter of its 3 s, and there is none."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    collecting = gc.isenabled()
    gc.disable()
    try:
        import great_expectations
    finally:
        if collecting:
            gc.enable()
    return great_expectations


def _describe(suite: str, result: Any, table: pd.DataFrame, *, leak_is_blocking: bool) -> dict[str, Any]:
    config = result.expectation_config
    level = str(getattr(config.severity, "value", config.severity))
    eased = level == BLOCKING and bool(config.meta.get("leak")) and not leak_is_blocking
    error = _exception(result)
    failing = _failing(table, config, result) if not result.success and error is None else table.index[:0]
    return {
        "suite": suite,
        "rule": config.meta["rule"],
        "statement": _statement(config),
        "expectation": config.type,
        "table": config.meta["table"],
        "column": ", ".join(_columns(config.kwargs)),
        "level": WARNING if eased else level,
        "success": bool(result.success),
        "failing": len(failing),
        "rows": _named(table, failing[:ROWS_NAMED], config),
        "error": error,
        "note": LEAKS_BY_DESIGN if eased else None,
    }


def _exception(result: Any) -> str | None:
    """What went wrong when a rule could not be judged at all, or None."""
    told = [result.exception_info, *(result.exception_info or {}).values()]
    raised = [info for info in told if isinstance(info, dict) and info.get("raised_exception")]
    return str(raised[0].get("exception_message")) if raised else None


def _statement(config: Any) -> str:
    """What the expectation asks, in Great Expectations' own words."""
    from great_expectations.render.renderer.inline_renderer import InlineRenderer

    (told,) = (
        content.to_json_dict()["value"]
        for content in InlineRenderer(render_object=config).get_rendered_content()
        if content.name == "atomic.prescriptive.summary"
    )
    text = str(told["template"])
    for name in sorted(told["params"], key=len, reverse=True):  # $v__10 before $v__1
        text = text.replace(f"${name}", str(told["params"][name]["value"]))
    return text


def _failing(table: pd.DataFrame, config: Any, result: Any) -> pd.Index[int]:
    """Index of the rows that do not hold a rule; as many as Great Expectations counted."""
    if config.type == "expect_table_row_count_to_be_between":
        return table.index
    fails = _fails(table[_columns(config.kwargs)], config.type, config.kwargs)
    counted = result.result["unexpected_count"]
    if fails.sum() != counted:
        raise AssertionError(f"{config.meta['rule']}: {fails.sum()} failing rows, but Great Expectations counts {counted}")
    return table.index[fails.to_numpy()]


def _fails(table: pd.DataFrame, expectation: str, kwargs: Mapping[str, Any]) -> pd.Series[bool]:
    """Which rows of the columns of a rule do not hold it; an unknown value fails only where it must be known."""
    values = table.iloc[:, 0]
    known = table.notna().any(axis=1)
    match expectation:
        case "expect_column_values_to_not_be_null":
            return ~known
        case "expect_column_values_to_be_unique" | "expect_compound_columns_to_be_unique":
            return known & table.duplicated(keep=False)
        case "expect_column_values_to_be_in_set":
            return known & ~values.isin(kwargs["value_set"])
        case "expect_column_values_to_not_be_in_set":
            return known & values.isin(kwargs["value_set"])
        case "expect_column_values_to_match_regex":
            return known & ~values.astype(str).str.contains(kwargs["regex"])
        case "expect_column_values_to_be_between":
            low, high = kwargs.get("min_value"), kwargs.get("max_value")
            low, high = -math.inf if low is None else low, math.inf if high is None else high
            below = values.le(low) if kwargs.get("strict_min") else values.lt(low)
            above = values.ge(high) if kwargs.get("strict_max") else values.gt(high)
            return known & (below | above)
        case other:
            raise InputError(
                f"a suite in {SUITES} asks for {other}, whose failing rows can not be named; use an expectation that the "
                "shipped suites use"
            )


def _named(table: pd.DataFrame, rows: pd.Index[int], config: Any) -> list[dict[str, str]]:
    """Rows as text: their ids, or all of a table that has none, and the columns that the rule is about."""
    ids = [name for name in _IDS if name in table] or list(table.columns)
    columns = dict.fromkeys([*ids, *_columns(config.kwargs), *config.meta.get("shows", ())])
    return [
        {str(name): _text(value) for name, value in zip(columns, row, strict=True)}
        for row in table[list(columns)].loc[rows].itertuples(index=False, name=None)
    ]


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
