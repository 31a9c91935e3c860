"""The top floor: the pipeline, where it runs, and the dermaflow command."""
