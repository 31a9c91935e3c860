"""The gate before training, on masks and plan."""
