"""KFP component of the register step."""

from kfp import dsl

from dermaflow.images import REGISTRY


@dsl.component(base_image=REGISTRY, install_kfp_package=False)
def register(
    dataset: dsl.Input[dsl.Dataset],
    report: dsl.Input[dsl.Artifact],
    splits_report: dsl.Input[dsl.Artifact],
    masks_and_plan_report: dsl.Input[dsl.Artifact],
    predictions_report: dsl.Input[dsl.Artifact],
    masks: dsl.Input[dsl.Artifact],
    splits: dsl.Input[dsl.Artifact],
    plan: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    selection: dsl.Input[dsl.Artifact],
    comparison: dsl.Input[dsl.Artifact],
    explanation: dsl.Input[dsl.Artifact],
    register: str,
    params: str,
    run_id: str,
    source_digest: str,
    pipeline_digest: str,
    commit: str,
    job_id: str,
    images: str,
    compiled_digest: str,
    registration: dsl.Output[dsl.Artifact],
    out_of_fold: dsl.Input[list[dsl.Artifact]] = None,
) -> None:
    """Create a version of dermaflow-candidate with lineage tags and evidence, and give it the alias challenger."""
    from pathlib import Path

    from components.register import core
    from dermaflow.params import RegisterParams
    from dermaflow.progress import step

    with step("register"):
        of_data = (dataset, report, splits_report, masks_and_plan_report, predictions_report, masks, splits, plan)
        folders = [Path(item.path) for item in (*of_data, model, evaluation, selection, comparison, explanation)]
        pooled = tuple(Path(item.path) for item in out_of_fold or ())
        asked = (params, run_id, source_digest, pipeline_digest, commit)
        evidence = core.Evidence(*folders, *asked, pooled, job_id, images, compiled_digest)
        info = core.register(evidence, RegisterParams.from_json(register), Path(registration.path))
        registration.metadata.update(model=info["model"], version=info["version"])
