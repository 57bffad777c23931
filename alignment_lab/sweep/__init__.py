"""python -m alignment_lab.sweep: what becomes of a sweep on a cluster. Reads run directories and asks Slurm; imports no torch."""
