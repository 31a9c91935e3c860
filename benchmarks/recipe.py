"""What each part of the recipe of profile `tuned` gains: ResNet50, each step one change more, judged by validation alone.

    python benchmarks/recipe.py --weights FILE [--source DIR] [--out DIR] [--seeds 3] [--json]

Named baseline: scikit-learn's LogisticRegression (C = 0.001, the best of 0.0003 to 0.01 on these images; standardised) on the
frozen features of the training images as they are, its logits less the logarithms of the classes' shares. Each step is trained
by the pipeline's own steps on one split by lesion, and told with its 95 % intervals (bootstrap over lesions) and the paired
difference to the step before; the last step also by more seeds. The test part is never looked at. What is trained is kept in
`--out` (default: benchmarks/recipe, not in git), and what each model says of the validation images in `--told` (default:
docs/evidence/recipe), under a digest of code and parameters: an interrupted comparison goes on with the next model. A step that
changes only how a model answers is not trained again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from measured import ROOT, SHARED, peak_of_tree
from prepared import Prepared, made_by, short, unnamed, write_told

from dermaflow.artifacts import file_digest, read_json, write_json
from dermaflow.lineage import machine
from dermaflow.wording import in_words

ARCHITECTURE, METRICS = "resnet50", ("balanced_accuracy", "auroc")
BASELINE = "logistic regression on frozen features"
STEPS: dict[str, tuple[str, ...]] = {  # each adds to those before it; all of them come to the profile `tuned`
    "head, classes drawn equally often": (
        "mixup.space=features",
        "train.dropout.resnet50=0.5",
        "train.architectures=[resnet50]",
    ),
    "kept by AUROC, few epochs": ("train.monitor=auroc", "train.head_epochs=6"),
    "colours as they are": ("augment.brightness=0", "augment.hue=0"),
    "half of the balance by the loss": ("augment.balance=square_root", "train.loss=logit_adjustment"),
    "tuned from conv5 on": ("train.fine_tune.blocks.resnet50=conv5", "train.fine_tune.epochs=4"),
    "tuned from conv4_block4 on": ("train.fine_tune.blocks.resnet50=conv4_block4",),
    "weights averaged": ("train.average=0.99",),
    "two members": ("train.fine_tune.members=2",),
    # From here on the model of the step before answers otherwise.
    "answers averaged over two flips": ("train.symmetries=2",),
    "logits shifted": ("train.adjustment=0.1",),
}

FIRST, *_, LAST = STEPS
ANSWERING = ("train.symmetries", "train.adjustment")  # settings that a finished model answers by, not trained ones


def settings_of(step: str) -> list[str]:
    """All settings of a step, over the profile `default`."""
    names = list(STEPS)
    return [setting for name in names[: names.index(step) + 1] for setting in STEPS[name]]


def logistic(images: Prepared, trained: Path, params: Any) -> Any:
    """The baseline's validation predictions, on the features that the first step's model was trained on."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from components.train.frozen import FrozenFeatures
    from components.train.material import gather
    from dermaflow.architectures import build_model, feature_extractor, load_backbone_weights

    material = gather(images.dataset, images.splits, trained / "plan", images.masks, params.train)
    data = material.dataset
    model = build_model(ARCHITECTURE, classes=len(data.classes), size=data.image_size, dropout=0, seed=0)
    load_backbone_weights(model, Path(params.train.weights_origin(ARCHITECTURE)))
    features = FrozenFeatures(
        feature_extractor(model), material, images.folder / "cache", name=ARCHITECTURE, precision="float32"
    )
    train, validation = (features.clean(rows).all() for rows in (material.train_rows, material.validation_rows))
    mean, scale = train.mean(axis=0), np.maximum(train.std(axis=0), 1e-6)
    fitted = LogisticRegression(C=1e-3, max_iter=1000).fit((train - mean) / scale, material.labels(material.train_rows))
    return material.validation_table(fitted.decision_function((validation - mean) / scale) - np.log(material.train_shares))


def answers(images: Prepared, trained: Path, params: Any) -> Any:
    """What a trained model says of the validation images with other `symmetries` and `adjustment` than it was made with."""
    import numpy as np

    from components.train.material import gather
    from components.train.stages import judged_images
    from dermaflow import contracts
    from dermaflow.architectures import symmetric
    from dermaflow.predict import load_model

    material = gather(images.dataset, images.splits, trained / "plan", images.masks, params.train)
    model, _ = load_model(trained / "model")
    averaged = symmetric(model, params.train.symmetries) if params.train.symmetries > 1 else model
    table = material.validation_table(judged_images(averaged, material, material.validation_rows).logits())
    tau = 0.0 if params.train.adjustment == "none" else params.train.adjustment
    table[contracts.logit_columns(material.dataset.classes)] -= (tau * np.log(material.train_shares)).astype(np.float32)
    return table


def compare(source: Path, weights: Path, folder: Path, told: Path, seeds: int, extra: list[str]) -> dict[str, Any]:
    """Train what is not in `told` yet; the figures of each, and the spread over seeds of the last."""
    import numpy as np
    import pandas as pd

    from dermaflow.dataset import Dataset
    from dermaflow.metrics import evaluate_predictions, paired_difference
    from dermaflow.params import load_params

    def params(*settings: str) -> Any:
        base = (f"data.source={source}", f"train.weights.{ARCHITECTURE}={weights}", *extra)
        return load_params("default", [*base, *settings], ROOT)

    images = Prepared(folder / short(made_by(params())), params())  # what other code or settings came to is not taken for this
    how = {"bootstrap": images.params.evaluate.bootstrap, "seed": images.params.evaluate.seed}
    trials = [(step, settings_of(step)) for step in STEPS]
    trials += [(f"{LAST}, seed {seed}", [*settings_of(LAST), f"train.seed={seed}"]) for seed in range(1, seeds)]
    given = (Dataset.open(images.dataset).content_digest, file_digest(weights))
    tables: dict[str, Any] = {}
    minutes: dict[str, float] = {}

    def trained(settings: list[str]) -> Path:
        plain = [each for each in settings if not each.startswith(ANSWERING)]
        made = images.folder / short(plain)
        return made if (made / "history").exists() else images.model(made.name, ARCHITECTURE, params(*plain))[0]

    for name, settings in [trials[0], (BASELINE, settings_of(FIRST)), *trials[1:]]:
        from_what = made_by(load_params("default", [*extra, *settings], ROOT))  # of any machine: without paths
        kept = told / f"{name} {short([*given, from_what])}.csv"
        facts = kept.with_suffix(".json")  # last: it says that the table is whole
        if not facts.exists():
            print(f"{name} ...", file=sys.stderr, flush=True)
            began = time.monotonic()
            if name == BASELINE:
                table = logistic(images, trained(settings), params(*settings))
            else:
                table = answers(images, trained(settings), params(*settings))
            write_told(unnamed(table, "validation"), kept)
            write_json(facts, {"minutes": round((time.monotonic() - began) / 60, 2)})
        tables[name], minutes[name] = pd.read_csv(kept), read_json(facts)["minutes"]
    classes = Dataset.open(images.dataset).classes
    overall = {name: evaluate_predictions(table, classes, **how)["overall"] for name, table in tables.items()}
    order = [BASELINE, *STEPS]
    gains = {
        after: {metric: paired_difference(tables[after], tables[before], classes, metric=metric, **how) for metric in METRICS}
        for before, after in itertools.pairwise(order)
    }
    repeated = [name for name, _ in trials[len(STEPS) - 1 :]]
    values = {metric: [overall[name][metric]["estimate"] for name in repeated] for metric in METRICS}
    return {
        "machine": machine(),
        "images": len(tables[BASELINE]),
        "minutes": minutes,
        "validation": {name: {metric: overall[name][metric] for metric in METRICS} for name in tables},
        "gains": gains,
        "seeds": {
            name: {"mean": float(np.mean(of)), "sd": float(np.std(of, ddof=1))} for name, of in values.items() if seeds > 1
        },
    }


def main() -> int:
    """Print the steps as a table, or as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="ResNet50's 'notop' .h5 of keras.applications")
    parser.add_argument("--source", type=Path, default=SHARED / "data" / "ham10000", help="images in HAM10000's layout")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "recipe", help="where models are kept")
    parser.add_argument("--told", type=Path, default=ROOT / "docs" / "evidence" / "recipe", help="where answers are kept")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the last step")
    parser.add_argument("--set", action="append", default=[], dest="extra", metavar="KEY=VALUE", help="of every step")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with peak_of_tree(os.getpid()) as peak:
        places = (path.resolve() for path in (options.source, options.weights, options.out, options.told))
        told = compare(*places, options.seeds, options.extra)
        told["peak_anonymous_mib"] = round(peak(), 1)
    if options.json:
        print(json.dumps(told))
        return 0

    print(
        f"{told['machine']}; {told['images']} validation images\n\n| step | balanced accuracy | gain | AUROC | gain | minutes |"
    )
    print("|---|---|---|---|---|---|")
    for name in sorted(told["validation"], key=[BASELINE, *STEPS, *told["validation"]].index):
        found = told["validation"][name]
        gain = told["gains"].get(name)
        cells = [cell for metric in METRICS for cell in (in_words(found[metric]), in_words(gain[metric]) if gain else "")]
        print(f"| {name} | {' | '.join(cells)} | {told['minutes'][name]:.1f} |")
    for metric, spread in told["seeds"].items():
        print(f"\n{metric} over {options.seeds} seeds: {spread['mean']:.3f}, standard deviation {spread['sd']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
