"""What a first run on an offline CUDA machine needs: wheels of what it lacks, a check of some minutes."""
