"""Hydra sweepers that choose the next cell by the results so far.

Refuses to know where a cell runs, or what its objective means.
"""
