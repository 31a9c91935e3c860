"""The select step from a shell: `--models` holds `<architecture>/model` and `<architecture>/evaluation` for each.

The architectures are those of params.yaml, which dvc.yaml trains one by one whatever the profile.
"""

from components.select.core import hand_on, select
from dermaflow.command import step_arguments
from dermaflow.params import load_params
from dermaflow.progress import step

with step("select"):
    options, params = step_arguments(
        "select", "Choose the candidate by validation.", "models", "selection", "candidate", "evaluation"
    )
    folders = [options.models / name for name in load_params().train.architectures]
    judged, trained = [folder / "evaluation" for folder in folders], [folder / "model" for folder in folders]
    select(judged, params.evaluate, options.selection)
    hand_on(options.selection, trained, judged, options.candidate, options.evaluation)
