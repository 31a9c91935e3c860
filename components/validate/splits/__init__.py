"""The gate after split."""
