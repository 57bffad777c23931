"""A finished run as a model to give away: adapters merged, reloaded and measured, with a model card, on the Hub if asked.

Reads a run directory and leaves it as it was.
"""
