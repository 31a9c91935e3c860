"""KFP component of the notify step: the pipeline's exit handler."""

from kfp import dsl

from dermaflow.images import REGISTRY


@dsl.component(base_image=REGISTRY, install_kfp_package=False)
def notify(
    status: dsl.PipelineTaskFinalStatus,
    run_id: str,
    job_id: str,
    profile: str,
    register: str,
    notification: dsl.Output[dsl.Artifact],
) -> None:
    """Tell how the run ended, whether it failed or not."""
    from pathlib import Path

    from components.notify.core import notify as work
    from dermaflow.params import RegisterParams
    from dermaflow.progress import step

    with step("notify"):
        target, where = Path(notification.path), RegisterParams.from_json(register)
        work(run_id, profile, status.state, status.error_message, target, where, job_id)
