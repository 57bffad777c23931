"""A finished run's model as one folder for plain transformers: merged, verified, described, uploaded.

Reads a run directory and leaves it unchanged.
"""
