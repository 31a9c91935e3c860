"""The explain step."""
