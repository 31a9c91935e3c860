"""The pipeline steps, one folder each, and the tasks of the pipeline; both in their order."""

STEPS = (
    *("balance", "ingest", "validate", "segment", "split", "fold", "augment"),
    *("train", "evaluate", "pool", "select", "compare", "explain"),
    *("register", "promote", "notify"),
)
GATES = ("validate-splits", "validate-masks-and-plan", "validate-predictions")  # tasks of the validate step, beside it
TASKS = (  # steps and gates: what reads an artifact comes after the artifact's gate
    *("ingest", "validate", "segment", "split", "validate-splits", "augment", "validate-masks-and-plan"),
    *("train", "evaluate", "validate-predictions", "select", "compare", "explain"),
    *("register", "promote", "notify"),
)
BEFORE = ("ingest-originals", "validate-originals", "balance")  # tasks that come first with augment.before_split alone
OUT_OF_FOLD = ("split-fold", "augment-fold", "train-fold", "evaluate-fold", "pool")  # with split.folds alone, before register


def module_of(task: str) -> str:
    """The module that carries out a task from a shell: `python -m components.<module>`."""
    return task.replace("validate-", "validate.").replace("-", "_")
