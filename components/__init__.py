"""The pipeline steps: one folder each."""
