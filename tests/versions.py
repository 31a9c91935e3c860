"""A git and DVC repository with a remote on a real S3 server, for tests and benchmarks of data versions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.s3_server import S3Server
from tests.workspace import ROOT

BUCKET, PREFIX = "dermaflow", "data"


@dataclass(frozen=True)
class Repository:
    """A working folder under git and DVC."""

    path: Path
    server: S3Server

    @classmethod
    def make(cls, path: Path, server: S3Server) -> Repository:
        """Set up git and DVC in a folder, and a bucket of the server as the remote."""
        made = cls(path, server)
        server.make_bucket(BUCKET)
        made.run("git init --quiet && dvc init --quiet", f"dvc remote add --default store s3://{BUCKET}/{PREFIX}")
        return made

    @classmethod
    def clone(cls, path: Path, server: S3Server) -> Repository:
        """The project as it is in the working tree, without its history, under git; its environment is ours."""
        made = cls(path, server)
        server.make_bucket(BUCKET)
        copy_project(path)
        (path / ".venv").symlink_to(sys.prefix)
        made.run("git init --quiet && git add . && git commit --quiet --message start")
        return made

    def run(self, *commands: str) -> str:
        """Carry out shell commands in the repository, until one fails; returns what they say."""
        environment = {
            **os.environ,
            **self.server.environment,
            **{f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "DVC_NO_ANALYTICS": "1",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
            cwd=self.path,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def objects(self) -> dict[str, int]:
        """What lies on the server, in bytes."""
        return self.server.sizes(BUCKET, PREFIX)

    def push(self) -> dict[str, int]:
        """`dvc push`; returns the objects that came to lie on the server by it, in bytes."""
        before = self.objects()
        self.run("dvc push")
        return new_objects(before, self.objects())


def copy_project(target: Path) -> None:
    """The project as it is in the working tree, without its history."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def new_objects(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What came to lie on the server; nothing that was there may be gone or changed."""
    assert all(after.get(key) == size for key, size in before.items()), "an object that was there is gone or changed"
    return {key: size for key, size in after.items() if key not in before}
