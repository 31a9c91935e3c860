"""The select step."""
