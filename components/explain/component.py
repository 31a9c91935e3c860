"""KFP component of the explain step."""

from kfp import dsl

from dermaflow.images import JUDGE


@dsl.component(base_image=JUDGE, install_kfp_package=False)
def explain(
    dataset: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Artifact],
    masks: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    explain: str,
    code: str,
    explanation: dsl.Output[dsl.Artifact],
) -> None:
    """Attribute the candidate's logits to pixels by SHAP, measure the attributions, and draw them."""
    from pathlib import Path

    from components.explain.core import explain as work
    from dermaflow.params import ExplainParams
    from dermaflow.progress import step

    with step("explain"):
        folders = [Path(artifact.path) for artifact in (dataset, splits, masks, model, evaluation)]
        work(*folders, ExplainParams.from_json(explain), Path(explanation.path))
