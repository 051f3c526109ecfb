"""Explicit mutual information maximisation beside the solo-learn baselines."""

__version__ = "0.1.0"
