"""The model card that stands in a version's description: Markdown (Mitchell et al., FAT* 2019)."""

from __future__ import annotations

from typing import Any

from dermaflow.wording import in_words


def model_card(bundle: dict[str, Any]) -> str:
    """A model card from an evidence bundle."""
    data, test = bundle["data"], bundle["test"]
    marks = [
        text
        for text, holds in (
            ("**Synthetic images: a check of the pipeline, not a result about patients.**", bundle["synthetic"]),
            ("**Random backbone: a check of the pipeline, not a result.**", bundle["pipeline_check"]),
            (f"**{bundle['mark']}.**", bundle["mark"]),
        )
        if holds
    ]
    classes = "\n".join(
        f"| {name} | {values['n_images']} | {in_words(values['sensitivity'])} | {in_words(values['specificity'])} | "
        f"{in_words(values['auroc'])} |"
        for name, values in test["per_class"].items()
    )
    return f"""# {bundle["architecture"]} on {data["name"]}

{" ".join(marks)}

- **Intended use:** {bundle["intended_use"]}. Not a medical device.
- **Data:** {data["counts"]["images"]} images of {data["counts"]["lesions"]} lesions, licence {data["licence"]},
  content `{data["content_digest"]}`.
- **Split:** {bundle["splits"]["strategy"]}, seed {bundle["splits"]["seed"]}, digest `{bundle["splits"]["digest"]}`; test images
  with a relative in train: {bundle["splits"]["leakage"]["all"]["with_relative_in_train"]}.
- **Model:** {bundle["model"]["parameters"]:,} parameters, weights from {bundle["model"]["weights"]["origin"]},
  digest `{bundle["model"]["weights_digest"]}`.
- **Commit:** `{bundle["git"]["commit"]}`{" with uncommitted changes" if bundle["git"]["dirty"] else ""}.
- **Run:** `{bundle["run_id"]}`.

Test part: {test["n_images"]} images of {test["n_lesions"]} lesions, never used for a choice.
Intervals: 95 %, bootstrap over lesions.

| | estimate |
|---|---|
| balanced accuracy | {in_words(test["overall"]["balanced_accuracy"])} |
| accuracy | {in_words(test["overall"]["accuracy"])} |
| AUROC (macro) | {in_words(test["overall"]["auroc"])} |

| class | images | sensitivity | specificity | AUROC |
|---|---|---|---|---|
{classes}
{_out_of_fold(bundle["out_of_fold"])}"""


def _out_of_fold(pooled: dict[str, Any] | None) -> str:
    """What models of the same architecture say of images that they were held out from; empty without folds."""
    if pooled is None:
        return ""
    judged, spread = pooled["test"], pooled["over_folds"]
    rows = "\n".join(
        f"| {title} | {in_words(judged['overall'][name])} | {spread[name]['mean']:.3f} | {spread[name]['sd']:.3f} |"
        for name, title in (("balanced_accuracy", "balanced accuracy"), ("auroc", "AUROC (macro)"))
    )
    return f"""
Out of fold: {judged["n_images"]} images of {judged["n_lesions"]} lesions of the train and validation parts, each
judged by one of {pooled["folds"]} models of this architecture that it was held out from. They tell of the training, not of
this very model.

| | estimate | mean of folds | standard deviation of folds |
|---|---|---|---|
{rows}
"""
