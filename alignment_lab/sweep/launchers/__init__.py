"""Hydra launchers that run the cells of a sweep: local processes or Slurm jobs.

Refuses to know what a cell does.
"""
