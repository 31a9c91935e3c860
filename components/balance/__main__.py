"""The balance step from a shell."""

from components.balance.core import balance
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("balance"):
    options, params = step_arguments("balance", "Balance the classes before the split, as the study did.", "dataset", "source")
    balance(options.dataset, params.augment, options.source)
