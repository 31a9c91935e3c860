"""The pipeline steps, one folder each; STEPS is their order."""

STEPS = (
    *("ingest", "validate", "segment", "split", "augment"),
    *("train", "evaluate", "select", "explain"),
    *("register", "promote", "notify"),
)
