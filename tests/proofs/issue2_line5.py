"""Issue 2, line 5: the folder mlflow/ does not shadow the package."""

from __future__ import annotations

import subprocess

from tests.proofs.clone import fresh_clone

BOUND = "python -c 'import mlflow; mlflow.__version__' from the root finds the package"


def prove() -> tuple[str, bool]:
    """Run it in a fresh clone's root."""
    clone = fresh_clone()
    program = "import mlflow; print(mlflow.__version__, mlflow.__file__)"
    done = subprocess.run([clone / ".venv/bin/python", "-c", program], cwd=clone, capture_output=True, text=True, check=False)
    version, _, place = done.stdout.strip().partition(" ")
    return f"mlflow {version} from {'site-packages' if 'site-packages' in place else place}", "site-packages" in place
