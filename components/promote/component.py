"""KFP component of the promote step."""

from kfp import dsl

from dermaflow.images import REGISTRY


@dsl.component(base_image=REGISTRY, install_kfp_package=False)
def promote(
    registration: dsl.Input[dsl.Artifact],
    comparison: dsl.Input[dsl.Artifact],
    promote: str,
    register: str,
    policy: str,
    commit: str,
    decision: dsl.Output[dsl.Artifact],
) -> None:
    """Apply the promotion policy to the challenger; where it may, copy it into the model dermaflow as champion."""
    from pathlib import Path

    from components.promote.core import promote as work
    from dermaflow.params import PromoteParams, RegisterParams
    from dermaflow.policy import Policy
    from dermaflow.progress import step

    with step("promote"):
        settings = PromoteParams.from_json(promote), RegisterParams.from_json(register)
        info = work(
            Path(registration.path), Path(comparison.path), Policy.from_json(policy), commit, *settings, Path(decision.path)
        )
        decision.metadata.update(outcome=info["outcome"])
