"""The registered form of a model: an MLflow pyfunc from RGB images to class probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.pyfunc import PythonModel


class LesionClassifier(PythonModel):  # type: ignore[misc]
    """Loads a Model artifact and answers arrays of images.

    Input: uint8 or float RGB [n, size, size, 3] in 0..255. Output: float32 [n, classes], probabilities in class order.
    """

    def load_context(self, context: Any) -> None:
        """Load model.keras and model.json."""
        from dermaflow.predict import load_model

        self.model, self.info = load_model(Path(context.artifacts["model"]))

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: Any,
        params: dict[str, Any] | None = None,  # noqa: ARG002 - MLflow's signature
    ) -> npt.NDArray[np.float32]:
        """Probabilities of each class for each image."""
        from dermaflow.metrics import softmax

        images = np.asarray(model_input, np.float32)
        shape = (self.info["image_size"], self.info["image_size"], 3)
        if self.info["masks"] != "none":
            raise ValueError(f"this model was trained with train.masks={self.info['masks']}: images alone are not enough")
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(f"images have shape {images.shape}; expected [n, {shape[0]}, {shape[1]}, 3], RGB in 0..255")
        return softmax(np.asarray(self.model(images, training=False))).astype(np.float32)
