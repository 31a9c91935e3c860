"""Dermaflow's ground floor: what several pipeline steps share, and nothing else."""

__version__ = "0.1.0"
