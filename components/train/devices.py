"""Where training runs: on the processor, a GPU or several; and what follows from it: precision, XLA, replicas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dermaflow.errors import InputError
from dermaflow.params import TrainParams

_FAST_BFLOAT16, _FAST_FLOAT16 = (8, 0), (7, 0)  # compute capability from which on: A100, V100


@dataclass(frozen=True)
class Device:
    """Where training runs.

    Attributes
    ----------
    strategy: tf.distribute's; mirrored over all GPUs where there are several.
    precision: Keras' dtype policy.
    jit: whether the step is compiled by XLA: on a GPU, where it fuses what is bound by memory; on a processor its
        convolutions are slower than oneDNN's.
    names: of the GPUs; empty on the processor.
    """

    strategy: Any
    precision: str
    jit: bool
    names: tuple[str, ...]

    @property
    def told(self) -> dict[str, Any]:
        """For the record."""
        return {
            "gpus": list(self.names),
            "replicas": self.strategy.num_replicas_in_sync,
            "precision": self.precision,
            "jit": self.jit,
        }


def prepare(params: TrainParams) -> Device:
    """Look at the machine, and make its results the same each time.

    Raises
    ------
    InputError
        when a batch can not be shared evenly by the GPUs.
    """
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    for physical in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(physical, enable=True)
    gpus = tf.config.list_logical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    strategy = tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
    if params.batch_size % strategy.num_replicas_in_sync:
        raise InputError(
            f"train.batch_size is {params.batch_size}, which {strategy.num_replicas_in_sync} GPUs can not share evenly; "
            f"use a multiple of {strategy.num_replicas_in_sync}"
        )
    return Device(
        strategy=strategy,
        precision=_precision(params, [tuple(detail.get("compute_capability", (0, 0))) for detail in details]),
        jit=len(gpus) > 0,
        names=tuple(str(detail.get("device_name", "GPU")) for detail in details),
    )


def _precision(params: TrainParams, capabilities: list[tuple[int, ...]]) -> str:
    if params.precision != "auto":
        return params.precision
    lowest = min(capabilities, default=(0, 0))
    return "mixed_bfloat16" if lowest >= _FAST_BFLOAT16 else "mixed_float16" if lowest >= _FAST_FLOAT16 else "float32"
