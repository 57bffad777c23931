"""Hydra launchers of cells, as local processes or Slurm jobs; refuses to know what a cell does."""
