"""The compare step."""
