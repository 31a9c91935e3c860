"""Compiling the pipeline must stay light: this fails when it imports a library that only a step's work needs."""

import subprocess
import sys

HEAVY = ("tensorflow", "keras", "great_expectations", "cv2", "mlflow", "shap", "sklearn", "matplotlib")
PROGRAM = f"""
import sys
from dermaflow.params import load_params
from pipelines.graph import tasks
tasks(load_params("default"))
found = [name for name in {HEAVY!r} if name in sys.modules]
print("imported while compiling:", ", ".join(found) or "nothing heavy")
sys.exit(bool(found))
"""

if __name__ == "__main__":
    sys.exit(subprocess.run([sys.executable, "-c", PROGRAM], check=False).returncode)
