"""The fold step."""
