"""Modules that other processes run with `python -m`; refuses to know what an action does.

Each of them prepares its process, runs an action or a part of one, and exits.
"""
