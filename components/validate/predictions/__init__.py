"""The gate after evaluate, on the predictions of all architectures."""
