"""The register step from a shell."""

import json
from dataclasses import fields

from components.register.core import Evidence, register
from dermaflow.command import step_arguments
from dermaflow.lineage import git_state
from dermaflow.progress import step

ARTIFACTS = tuple(field.name for field in fields(Evidence) if field.type == "Path")

with step("register"):
    options, params = step_arguments("register", "Register the candidate.", *ARTIFACTS, "registration", run_id=())
    told = {
        "params": params.model_dump_json(by_alias=True),
        "run_id": options.run_id,
        "source_digest": "",
        "pipeline_digest": "",
        "commit": json.dumps(git_state()),
    }
    evidence = Evidence(**{name: getattr(options, name) for name in ARTIFACTS}, **told)
    register(evidence, params.register_, options.registration)
