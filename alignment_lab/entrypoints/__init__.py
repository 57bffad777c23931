"""Modules that other processes run with `python -m`; refuses to know what an action does."""
