"""Dermaflow's ground floor: what several pipeline steps share, and nothing else."""

import os

__version__ = "0.1.0"

# TensorFlow uses oneDNN by itself only on processors with AVX512-VNNI or newer; on others training is up to 2.6 times as
# fast with it (docs/results.md). It reads this when it is imported, which no module here does before this one is.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
