"""The commands of the registry, as a person or a script gives them: what they print and how they end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.registries import Registry, lenient_policy
from tests.workspace import DERMAFLOW, ROOT, sets


def call(made: Registry, *arguments: str) -> tuple[int, str, str]:
    """`dermaflow ARGUMENTS` on a registry: exit code, stdout and stderr."""
    from pipelines.cli import main

    out, err = StringIO(), StringIO()
    command = [str(DERMAFLOW), *arguments, *sets(*made.sets())]
    with (
        patch("sys.argv", command),
        patch.dict("os.environ"),
        chdir(ROOT),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    assert isinstance(end.value.code, int)
    return end.value.code, out.getvalue(), err.getvalue()


def test_verify_ends_with_0_when_all_holds_and_with_1_and_the_findings_when_not(used: Registry):
    code, out, _ = call(used, "verify", "--json")
    told = json.loads(out)
    assert (code, told["ok"], told["findings"]) == (0, True, [])
    assert told["versions"] == ["dermaflow/2", "dermaflow-candidate/2"]
    assert told["ledger"]["entries"] == len(used.ledger.entries())
    used.client.set_registered_model_alias("dermaflow", "champion", "1")
    code, out, _ = call(used, "verify", "--json")
    assert code == 1
    (finding,) = json.loads(out)["findings"]
    assert (finding["name"], finding["where"]) == ("champion_moved", "dermaflow@champion")
    assert "the alias is on dermaflow version 1, but by the ledger it is on version 2" in finding["detail"]
    code, out, _ = call(used, "verify", "--repair", "--json")
    assert (code, [item["name"] for item in json.loads(out)["mended"]]) == (0, ["champion_moved"])


def test_a_backup_is_brought_back_by_the_lines_of_the_docs(used: Registry, tmp_path: Path):
    """mlflow/README.md's lines for an embedded registry, which keeps its paths: everything was lost, and all holds again."""
    docs = (ROOT / "mlflow" / "README.md").read_text().split("## Backup and restore")[1]
    save, restore = re.findall(r"```bash\n(.*?)```", docs, re.DOTALL)[:2]
    anchor = tmp_path / "anchor.json"
    assert call(used, "anchor", str(anchor))[0] == 0
    place = tmp_path / "place"
    place.mkdir()
    (place / ".venv" / "bin").mkdir(parents=True)
    (place / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (place / ".dermaflow").symlink_to(used.folder)
    subprocess.run(["sh", "-euc", save], cwd=place, check=True)
    policy = used.policy.read_text()
    shutil.rmtree(used.folder)
    used.folder.mkdir()
    used.policy.write_text(policy)
    subprocess.run(["sh", "-euc", restore], cwd=place, check=True)
    code, out, err = call(used, "verify", "--all", "--anchor", str(anchor), "--json")
    assert (code, len(json.loads(out)["versions"])) == (0, 4), err


def test_an_anchor_is_kept_and_held_against_the_ledger(used: Registry, tmp_path: Path):
    anchor = tmp_path / "anchor.json"
    assert call(used, "anchor", str(anchor))[0] == 0
    assert call(used, "verify", "dermaflow-candidate/1", "--anchor", str(anchor))[0] == 0
    for path in sorted((used.folder / "ledger").iterdir())[-2:]:
        path.unlink()
    code, out, _ = call(used, "verify", "dermaflow-candidate/1", "--anchor", str(anchor), "--json")
    assert code == 1
    assert "ledger_anchor" in {finding["name"] for finding in json.loads(out)["findings"]}
    code, _, err = call(used, "anchor", str(anchor))
    assert code == 1
    assert "stays as it is: the anchor knows entry" in " ".join(err.split())


def test_a_refused_promotion_ends_with_1_and_shows_its_gates(used: Registry):
    code, out, _ = call(used, "promote", "dermaflow-candidate/1", "--json")
    told = json.loads(out)
    assert (code, told["outcome"], told["refused_by"]) == (1, "refused", ["not_worse_than_champion"])
    assert told["champion"] == {"name": "dermaflow", "version": 2}


def test_a_dry_run_says_so(used: Registry):
    before = used.kinds()
    code, out, _ = call(used, "promote", "--dry-run")
    assert code == 0
    assert "nothing was written, this was a dry run" in " ".join(out.split())
    assert used.kinds() == before


def test_waiting_for_people_ends_with_1(used: Registry):
    used.write_policy(lenient_policy(approvals=1, margin_to_champion=1.0))
    assert call(used, "promote", "dermaflow-candidate/1")[0] == 1
    code, out, _ = call(used, "promote", "dermaflow-candidate/1", "--approver", "ann")
    assert code == 0
    assert "Approvals: 1 of 1 (ann)" in out
    assert used.champion() == 3


def test_rollback_tells_what_is_champion_now(used: Registry):
    code, out, _ = call(used, "rollback", "--reason", "worse")
    assert code == 0
    assert "champion: dermaflow version 1 (before: dermaflow version 2)" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rollback",), "--reason"),
        (("rollback", "--reason", " "), "--reason: say why"),
        (("waive", "leakage", "dermaflow-candidate/1", "--reason", "x", "--until", "2999-01-01"), "can not be waived"),
        (("waive", "data_licence", "dermaflow-candidate/1", "--until", "2999-01-01"), "--reason"),
        (("promote", "somewhere"), "is neither NAME@ALIAS nor NAME/VERSION"),
        (("promote", "dermaflow-candidate/9"), "no such version"),
        (("verify", "somewhere"), "is neither NAME@ALIAS nor NAME/VERSION"),
        (("verify", "--anchor", "nowhere.json"), "nowhere.json does not exist"),
        (("models", "show", "dermaflow/9"), "no such version"),
    ],
)
def test_a_wrong_request_ends_with_2_and_changes_nothing(used: Registry, arguments: tuple[str, ...], told: str):
    before = used.kinds()
    code, _, err = call(used, *arguments)
    assert code == 2
    assert told in " ".join(err.split())
    assert used.kinds() == before


def test_a_waiver_is_shown_with_the_version(used: Registry):
    code, out, _ = call(used, "waive", "data_licence", "dermaflow-candidate/1", "--reason", "asked", "--until", "2999-01-01")
    assert (code, "is waived until 2999-01-01: entry" in out) == (0, True)
    code, out, _ = call(used, "models", "show", "dermaflow-candidate/1", "--json")
    told = json.loads(out)
    assert code == 0
    assert list(told["waivers"]) == ["data_licence"]
    assert told["entries"][-1]["says"] == "gate data_licence waived until 2999-01-01: asked"
    code, out, _ = call(used, "models", "show", "dermaflow-candidate/1")
    assert (code, "gate data_licence waived until 2999-01-01: asked" in " ".join(out.split())) == (0, True)


def test_models_still_lists_both_models(used: Registry):
    code, out, _ = call(used, "models", "--json")
    assert code == 0
    assert [(item["name"], item["version"], item["aliases"]) for item in json.loads(out)] == [
        ("dermaflow", 2, ["champion"]),
        ("dermaflow", 1, []),
        ("dermaflow-candidate", 2, ["challenger"]),
        ("dermaflow-candidate", 1, []),
    ]


def test_check_says_before_any_work_that_a_server_has_no_ledger(used: Registry):
    def ledger(*values: str) -> dict[str, Any]:
        _, out, _ = call(used, "check", "--json", *sets(*values))
        return next(item for item in json.loads(out)["checks"] if item["name"] == "ledger")

    assert ledger()["detail"] == f"{used.folder}/ledger, {len(used.kinds())} entries, each following the one before"
    (used.folder / "ledger" / "00000002.json").unlink()
    assert "does not hold at entry 2" in ledger()["detail"]
    server = Registry(used.folder)
    with patch.object(Registry, "uri", "http://127.0.0.1:9"):
        _, out, _ = call(server, "check", "--json")
    told = next(item for item in json.loads(out)["checks"] if item["name"] == "ledger")
    assert not told["ok"]
    assert "is a server, and nothing says where its ledger lies" in told["detail"]
