"""The registered form of a model: an MLflow pyfunc from image files or arrays to calibrated class probabilities.

MLflow keeps this file with the model and runs it where the model is loaded (models from code): nothing is pickled. The bytes of
a file become an image as in ingest (components/ingest/decode.py), whose code travels with the model, so that it is served what
it was judged on; what ingest would refuse is refused here for the same reason.
"""

from __future__ import annotations

from importlib import import_module  # of steps' code: at work it lies beside the model; this package itself rests on no step
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

_TOGETHER = 32  # images in the network at once


class LesionClassifier(PythonModel):  # type: ignore[misc]
    """Loads a Model artifact and answers images.

    Its artifact `settings`, a JSON file, has `segment`, the parameters by which its images were segmented, used where the
    model wants masks, and `max_pixels`, data.max_pixels: an image of more pixels is refused.
    """

    def load_context(self, context: Any) -> None:
        """Load model.keras and model.json."""
        from dermaflow.artifacts import read_json
        from dermaflow.inference import settled
        from dermaflow.predict import load_model

        model, self.info = load_model(Path(context.artifacts["model"]))
        self.forward = settled(model)
        settings = read_json(Path(context.artifacts["settings"]))
        self.segment, self.max_pixels = settings["segment"], settings["max_pixels"]

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002 - MLflow's signature
    ) -> pd.DataFrame:
        """Probabilities of each class for each image.

        Parameters
        ----------
        model_input: column `image`: bytes of a JPEG or PNG file (base64 in JSON), or uint8 RGB [height, width, 3].

        Returns
        -------
        float64 [n, classes], a column for each class by its name: softmax of the logits over the fitted temperature.

        Raises
        ------
        MlflowException
            INVALID_PARAMETER_VALUE, which a server answers by 400: names the image (counted from 0) and what is wrong with it.
        """
        from dermaflow.metrics import softmax

        pixels = [self._pixels(number, image) for number, image in enumerate(model_input["image"])]
        batches = (np.stack(pixels[start : start + _TOGETHER]) for start in range(0, len(pixels), _TOGETHER))
        logits = [self.forward(self._inputs(batch)) for batch in batches]
        classes = self.info["classes"]
        together = np.concatenate([np.empty((0, len(classes)), np.float32), *logits])
        return pd.DataFrame(softmax(together / (self.info["temperature"] or 1.0)), columns=classes)

    def _pixels(self, number: int, image: Any) -> npt.NDArray[np.uint8]:
        """One image as the model's Dataset would hold it, uint8 [size, size, 3]."""
        size, mode, decoding = self.info["image_size"], self.info["resize"], import_module("components.ingest.decode")
        if isinstance(image, bytes):
            try:
                return np.asarray(decoding.decode(image, size, self.max_pixels, mode).pixels)
            except decoding.RejectedError as error:
                raise _refused(number, str(error)) from error
        if not isinstance(image, np.ndarray):
            raise _refused(number, f"is {type(image).__name__}; give the bytes of a JPEG or PNG file, or an array")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise _refused(number, f"{image.dtype} {list(image.shape)}; an array has to be uint8 RGB [height, width, 3]")
        if image.shape[0] * image.shape[1] > self.max_pixels:
            raise _refused(number, f"{image.shape[1]} x {image.shape[0]} pixels, data.max_pixels is {self.max_pixels}")
        return np.asarray(decoding.resize(image, size, mode))

    def _inputs(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What the network takes, float32 [n, size, size, channels]; masks as the pipeline draws them, where it wants them."""
        from dermaflow.masking import apply_masks
        from dermaflow.params import SegmentParams

        mode, params = self.info["masks"], SegmentParams(**self.segment)
        masks = None
        if mode != "none":
            segmenting = import_module("components.segment.kmeans_mask")
            masks = np.stack([segmenting.lesion_mask(image, params).mask for image in images])
        return apply_masks(images, masks, mode).astype(np.float32)


def _refused(number: int, reason: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(f"image {number}: {reason}")


set_model(LesionClassifier())
