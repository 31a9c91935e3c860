"""The balance step."""
