"""The segment step."""
