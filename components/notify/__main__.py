"""The notify step from a shell."""

from components.notify.core import notify
from dermaflow.command import step_arguments
from dermaflow.progress import step

with step("notify"):
    options, params = step_arguments(
        "notify", "Tell how a run ended.", "notification", run_id=(), state=("SUCCEEDED", "FAILED", "CANCELLED")
    )
    notify(options.run_id, params.profile, options.state, None, options.notification, params.register_)
