"""Checkpoints of a run: committed atomically, verified by a manifest, independent of how the run was sharded.

Refuses to know methods and data, and never executes what it loads.
"""
