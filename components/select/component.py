"""KFP component of the select step."""

from kfp import dsl

from dermaflow.images import JUDGE


@dsl.component(base_image=JUDGE, install_kfp_package=False)
def select(
    evaluations: dsl.Input[list[dsl.Artifact]],
    models: dsl.Input[list[dsl.Model]],
    evaluate: str,
    code: str,
    selection: dsl.Output[dsl.Artifact],
    candidate: dsl.Output[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
) -> None:
    """Choose the candidate by validation alone, and hand on its model and evaluation."""
    from pathlib import Path

    from components.select.core import hand_on
    from components.select.core import select as work
    from dermaflow.params import EvaluateParams
    from dermaflow.progress import step

    with step("select"):
        judged, trained = [Path(item.path) for item in evaluations], [Path(item.path) for item in models]
        info = work(judged, EvaluateParams.from_json(evaluate), Path(selection.path))
        hand_on(Path(selection.path), trained, judged, Path(candidate.path), Path(evaluation.path))
        candidate.metadata.update(architecture=info["candidate"])
