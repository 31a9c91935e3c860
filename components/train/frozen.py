"""Features of a pretrained model's frozen layers, for the train views, the validation images and the plan's fixed mixes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.train.features import Features, FeatureStore
from components.train.material import Material
from dermaflow.augmentation import NUMBERS, UNTOUCHED, transform
from dermaflow.inference import settled
from dermaflow.predict import BATCH

if TYPE_CHECKING:
    import keras


class FrozenFeatures:
    """What frozen layers make of images.

    Parameters
    ----------
    layers: images, or features of `source`, -> features [n, ...]; in inference mode.
    name: of the layers, told in progress and part of the store's key.
    source: features that the layers take in place of images.
    dtype: that features are stored in.
    precision: that the layers compute in.
    """

    def __init__(
        self,
        layers: keras.Model,
        material: Material,
        cache: Path,
        *,
        name: str,
        precision: str,
        dtype: type[np.floating[Any]] = np.float32,
        source: FrozenFeatures | None = None,
    ) -> None:
        self._forward = settled(layers)
        self._material = material
        self._text = f"{name}: features of the frozen layers"
        self._source = source
        self._store = FeatureStore(
            cache / "features",
            {
                "source": source and source.folder.name,
                "layers": name,
                "weights": weights_digest(layers),
                "precision": precision,
                "normalisation": "folded",
                "masks": material.params.masks,
                "image_size": material.dataset.image_size,
                "mask_digest": material.mask_digest,
            },
            dtype,
        )

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return self._store.folder

    def train(self) -> Features:
        """Of the train images' views: image after image in the order of `train_rows`, all views of one together."""
        plan = self._material.plan
        return self.seen(self._material.dataset.rows_of(plan["image_id"]), plan)

    def clean(self, rows: npt.NDArray[np.int64]) -> Features:
        """Of the images of manifest rows as they are."""
        return self.seen(rows, pd.DataFrame(UNTOUCHED, index=range(len(rows))))

    def mixes(self) -> Features:
        """Of the plan's fixed mixes: of their pixels, mixed."""
        material, mixes = self._material, self._material.mixes
        rows = [material.dataset.rows_of(mixes[f"image_{side}"]) for side in "ab"]
        views = [pd.DataFrame(UNTOUCHED | {"symmetry": mixes[f"symmetry_{side}"]}, index=mixes.index) for side in "ab"]
        weight = mixes["weight"].to_numpy()[:, None, None, None]
        digests = [material.dataset.manifest["pixel_digest"].to_numpy()[part] for part in rows]
        names = [
            f"{a}/{code_a}*{share:.9g}+{b}/{code_b}"
            for a, code_a, share, b, code_b in zip(
                digests[0], mixes["symmetry_a"], mixes["weight"], digests[1], mixes["symmetry_b"], strict=True
            )
        ]

        def mixed(part: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            own, other = (_seen(material.inputs(rows[side][part]), views[side], part) for side in (0, 1))
            return np.asarray(weight[part] * own + (1 - weight[part]) * other, np.float32)

        return self._stored(names, mixed if self._source is None else self._source.mixes().take, f"{self._text}, mixes")

    def seen(self, rows: npt.NDArray[np.int64], views: pd.DataFrame) -> Features:
        """Of the images of manifest rows as `views` show them: NUMBERS, a row each."""
        digests = self._material.dataset.manifest["pixel_digest"].to_numpy()[rows]
        numbers = [views[name] for name in NUMBERS]
        names = ["/".join(f"{part}" for part in view) for view in zip(digests, *numbers, strict=True)]

        def images(part: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            return _seen(self._material.inputs(rows[part]), views, part)

        return self._stored(names, images if self._source is None else self._source.seen(rows, views).take, self._text)

    def _stored(self, names: list[str], take: Any, text: str) -> Features:
        return self._store.get(names, lambda part: in_batches(self._forward, take, part), text)


def in_batches(forward: Any, batch: Any, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """`forward` of `batch(positions)`, BATCH at a time.

    All batches have one shape: a result does not depend on what else is computed beside it, and nothing is compiled twice.
    """
    size, results = min(BATCH, max(len(positions), 1)), []
    for start in range(0, len(positions), size):
        part = positions[start : start + size]
        results.append(forward(batch(np.resize(part, size)))[: len(part)])
    return np.concatenate(results)


def weights_digest(model: keras.Model) -> str:
    """SHA-256 of a model's weights, in the order of its layers."""
    sha = hashlib.sha256()
    for value in model.get_weights():
        sha.update(np.ascontiguousarray(value).tobytes())
    return "sha256:" + sha.hexdigest()


def _seen(images: npt.NDArray[np.uint8], views: pd.DataFrame, part: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Images as some of the views show them."""
    import tensorflow as tf

    numbers = (tf.constant(views[name].to_numpy()[part]) for name in NUMBERS)
    seen: npt.NDArray[np.float32] = transform(tf.constant(images), *numbers).numpy()
    return seen
