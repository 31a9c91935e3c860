"""Attributions an image: Deep SHAP as the pipeline has it, against shap.GradientExplainer with 50 samples.

    python benchmarks/explain.py [--source DIR] [--weights FILE] [--images 8] [--background 7] [--samples 50]
                                 [--architecture resnet50] [--size 224] [--json]

Both explain the logit of the class that the model predicts, of the same images, against the same background, one image after
the other; without --weights the network is random, with BatchNormalization fitted to the background (the head is random always:
SHAP's sums are of any network). Images: of a source in HAM10000's layout; without one, phantoms. Each contestant works in
a process of its own; the first image compiles and is left out. Additivity error: |sum + base - logit| / |logit - base|, base
being the background's mean logit; the median over the images counts.

    ours        components.explain.attribution.LogitExplainer
    gradient    shap.GradientExplainer(model, background).shap_values(image, nsamples=50, ranked_outputs=1)
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured import SHARED, contestant, run, tell

from dermaflow.lineage import machine

LEAST = {"ours / gradient, images a minute": 5.0}
MOST = {"ours / gradient, additivity error": 1.0}
CLASSES = 7


def material(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """A model, images to explain [n + 1, size, size, 3] and background [b, size, size, 3], float32."""
    import cv2
    import keras
    import numpy as np

    from dermaflow.architectures import build_model, load_backbone_weights

    files = sorted(options.source.rglob("*.jpg"))[: options.images + 1 + options.background]
    read = [cv2.resize(cv2.imread(str(file)), (options.size, options.size), interpolation=cv2.INTER_AREA) for file in files]
    pixels = np.stack(read)[..., ::-1].astype(np.float32)
    images, background = pixels[options.background :], pixels[: options.background]
    model = build_model(options.architecture, classes=CLASSES, size=options.size, dropout=0.5, seed=1)
    if options.weights:
        load_backbone_weights(model, options.weights)
    else:
        for layer in model._flatten_layers():  # noqa: SLF001 - `layers` does not enter nested models
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        model(background, training=True)
    return model, images, background


def ours(options: argparse.Namespace) -> Any:
    """Seconds and additivity error of each image but the first."""
    from components.explain.attribution import LogitExplainer

    model, images, background = material(options)
    explainer = LogitExplainer(model, background)
    return lambda: told(images, explainer.logits, explainer.base_logits, explainer.attribute)


def gradient(options: argparse.Namespace) -> Any:
    """The same of expected gradients."""
    import numpy as np
    import shap

    model, images, background = material(options)
    explainer = shap.GradientExplainer(model, background)

    def attribute(image: Any, _: int) -> Any:
        values, _ = explainer.shap_values(image[None], nsamples=options.samples, ranked_outputs=1, rseed=0)
        return np.asarray(values)[0, ..., 0]

    return lambda: told(images, lambda batch: np.asarray(model(batch)), np.asarray(model(background)).mean(axis=0), attribute)


def told(images: Any, logits: Any, base: Any, attribute: Any) -> dict[str, list[float]]:
    """Seconds and additivity error of each image but the first."""
    from components.explain.measures import additivity_error

    rows = []
    for image in images:
        answers = logits(image[None])[0]
        explained = int(answers.argmax())
        began = time.perf_counter()
        attribution = attribute(image, explained)
        seconds = time.perf_counter() - began
        rows.append((seconds, additivity_error(attribution, float(answers[explained]), float(base[explained]))))
    seconds, errors = zip(*rows[1:], strict=True)
    return {"seconds": list(seconds), "additivity_errors": list(errors)}


CONTESTANTS = {work.__name__: work for work in (ours, gradient)}


def compare(arguments: list[str]) -> dict[str, Any]:
    """Both contestants, their ratios, and what was missed."""
    import numpy as np

    results = {name: run(__file__, "--contestant", name, *arguments) for name in CONTESTANTS}
    rate = {name: 60 / float(np.mean(found["result"]["seconds"])) for name, found in results.items()}
    error = {name: float(np.median(found["result"]["additivity_errors"])) for name, found in results.items()}
    ratios = {
        "ours / gradient, images a minute": rate["ours"] / rate["gradient"],
        "ours / gradient, additivity error": error["ours"] / error["gradient"],
    }
    missed = [name for name, least in LEAST.items() if ratios[name] < least]
    missed += [name for name, most in MOST.items() if ratios[name] > most]
    return {
        "machine": machine(),
        "images": len(results["ours"]["result"]["seconds"]),
        "images_a_minute": {name: round(value, 2) for name, value in rate.items()},
        "median_additivity_error": error,
        "peak_anonymous_mib": {name: found["peak_anonymous_mib"] for name, found in results.items()},
        "ratios": {name: float(f"{value:.3g}") for name, value in ratios.items()},
        "missed": missed,
    }


def main() -> int:
    """Print the comparison for people, or as one JSON object; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="images in HAM10000's layout; default: shared ones, else phantoms")
    parser.add_argument("--weights", type=Path, help="'notop' .h5 of keras.applications")
    parser.add_argument("--images", type=int, default=8, help="explained, after the first")
    parser.add_argument("--background", type=int, default=7, help="images that stand for no information")
    parser.add_argument("--samples", type=int, default=50, help="of GradientExplainer")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.contestant:
        contestant(CONTESTANTS[options.contestant](options))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if options.source is None:
            options.source = SHARED / "data" / "ham10000"
        if not options.source.exists():
            from dermaflow.phantom import draw_phantoms

            options.source = Path(folder) / "phantom"
            draw_phantoms(options.source, images=max(21, options.images + options.background + 1), seed=7)
        passed = ("source", "weights", "images", "background", "samples", "architecture", "size")
        arguments = [f"--{name}={getattr(options, name)}" for name in passed if getattr(options, name) is not None]
        found = compare(arguments)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{found['machine']}; {options.architecture}, {options.size} px, {found['images']} images")
        tell(found, ("images_a_minute", "median_additivity_error", "peak_anonymous_mib", "ratios"), LEAST, MOST)
    return 1 if found["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
