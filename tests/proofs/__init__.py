"""Proofs at full size, one script for each "must hold" line of an issue; `make prove` runs them."""
