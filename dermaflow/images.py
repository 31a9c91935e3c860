"""The container image of each group of steps, by the name it is built under; digests live in infra/images/lock.yaml.

A step's component names its group here. Local processes ignore the image; a container run needs it to be built.
"""

from __future__ import annotations

DATA = "dermaflow-python/data:0.1.0"
VALIDATE = "dermaflow-python/validate:0.1.0"
TRAIN = "dermaflow-python/train:0.1.0"
JUDGE = "dermaflow-python/judge:0.1.0"
REGISTRY = "dermaflow-python/registry:0.1.0"
