"""Issue 2, line 2: profile quick on real images."""

from __future__ import annotations

import json
import shutil

from dermaflow.wording import in_words
from tests.proofs.clone import SHARED, dermaflow, fresh_clone, imagenet_weights

BOUND = "within 35 minutes on 2 cores; ResNet50's test balanced accuracy at least 0.55 over at least 250 test images"


def prove() -> tuple[str, bool]:
    """Run the quick profile from an empty cache."""
    if not SHARED.exists():
        return "the real images (../shared) are not here", False
    clone = fresh_clone()
    for leftover in ("runs", ".dermaflow"):
        shutil.rmtree(clone / leftover, ignore_errors=True)
    source, weights = f"data.source={SHARED / 'data/ham10000'}", f"train.weights.resnet50={imagenet_weights('resnet50')}"
    printed, seconds = dermaflow(clone, "run", "--profile", "quick", "--set", source, "--set", weights, "--json")
    result = json.loads(printed)
    resnet = next(entry for entry in result["architectures"] if entry["name"] == "resnet50")
    figure, images = resnet["test"]["balanced_accuracy"], resnet["test"]["n_images"]
    passed = seconds <= 35 * 60 and figure["estimate"] >= 0.55 and images >= 250 and result["candidate"]["version"] >= 1
    return (
        f"{seconds / 60:.1f} minutes; ResNet50 test balanced accuracy {in_words(figure)}, "
        f"n = {images} images of {resnet['test']['n_lesions']} lesions"
    ), passed
