"""The promote step from a shell."""

import json
from pathlib import Path

from components.promote.core import promote
from dermaflow.command import step_arguments
from dermaflow.lineage import git_state
from dermaflow.policy import read_policy
from dermaflow.progress import step

with step("promote"):
    options, params = step_arguments("promote", "Apply the promotion policy.", "registration", "comparison", "decision")
    told = read_policy(Path(params.promote.policy)), json.dumps(git_state())
    settings = params.promote, params.register_
    promote(options.registration, options.comparison, *told, *settings, options.decision)
