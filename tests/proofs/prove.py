"""Run every proof that does not stand in docs/proofs.json for this code yet, and write its row there.

A proof is a module `issue<N>_line<M>.py` beside this file with BOUND (what must hold, in words) and `prove()`, which
returns (figure, passed). Each runs in a process of its own; the file is written after each, so that an interrupted
`make prove` goes on where it stopped. `python tests/proofs/prove.py 2.1 2.3` runs these alone.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dermaflow.lineage import machine
from dermaflow.progress import ENVIRONMENT

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TABLE = ROOT / "docs" / "proofs.json"
RUN_ONE = "import json, sys; from tests.proofs import {name} as proof; print('RESULT', json.dumps(proof.prove()))"


def main(wanted: list[str]) -> int:
    """Run the wanted proofs (all, when none is named); exit code 1 when any does not pass."""
    rows = json.loads(TABLE.read_text()) if TABLE.exists() else []
    commit = git("rev-parse", "HEAD")
    if git("status", "--porcelain", "--", ".", ":(exclude)docs"):
        print("error: commit first; a proof speaks for a commit", file=sys.stderr)
        return 2
    passed = True
    for path in sorted(HERE.glob("issue*_line*.py"), key=number):
        issue, line = number(path)
        if wanted and f"{issue}.{line}" not in wanted:
            continue
        known = next((row for row in rows if (row["issue"], row["line"]) == (issue, line)), None)
        if known and known["pass"] and same_code(known["commit"]):
            print(f"{issue}.{line} stands already")
            continue
        row = run(path, issue, line, commit)
        keep(row)
        print(f"{issue}.{line} {'pass' if row['pass'] else 'FAIL'}: {row['figure']}")
        passed &= row["pass"]
    return 0 if passed else 1


def run(path: Path, issue: int, line: int, commit: str) -> dict[str, Any]:
    """One proof in a process of its own, as a row of the table."""
    print(f"{issue}.{line} ...", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUN_ONE.format(name=path.stem)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **ENVIRONMENT, "PROVED_COMMIT": commit},
    )
    result = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    figure, ok = json.loads(result[1]) if result else (f"the proof ended with exit code {done.returncode}", False)
    return {
        "issue": issue,
        "line": line,
        "command": f"python tests/proofs/prove.py {issue}.{line}",
        "commit": commit,
        "machine": f"{machine()}, Python {platform.python_version()}",
        "figure": figure,
        "bound": bound(path),
        "pass": bool(ok),
        "seconds": round(time.monotonic() - started, 1),
    }


def bound(path: Path) -> str:
    """A proof's BOUND, read without running it."""
    assigned = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "BOUND")


def same_code(commit: str) -> bool:
    """Whether HEAD differs from a commit in documents at most: the table itself can only be committed after the proof."""
    paths = (".", ":(exclude)docs", ":(exclude)*.md")
    return subprocess.run(["git", "diff", "--quiet", commit, "HEAD", "--", *paths], cwd=ROOT, check=False).returncode == 0


def keep(row: dict[str, Any]) -> None:
    """Put a row into the table as it is by now: another `make prove` may have written meanwhile."""
    rows = json.loads(TABLE.read_text()) if TABLE.exists() else []
    others = [other for other in rows if (other["issue"], other["line"]) != (row["issue"], row["line"])]
    rows = sorted([*others, row], key=lambda row: (row["issue"], row["line"]))
    fresh = TABLE.with_name(f".{TABLE.name}.new")  # a proof that is killed must not take the others' rows with it
    fresh.write_text(json.dumps(rows, indent=2) + "\n")
    fresh.replace(TABLE)


def number(path: Path) -> tuple[int, int]:
    """Issue and line of a proof's file name."""
    found = re.fullmatch(r"issue(\d+)_line(\d+)", path.stem)
    assert found, path
    return int(found[1]), int(found[2])


def git(*arguments: str) -> str:
    """What git says in the project's root."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
