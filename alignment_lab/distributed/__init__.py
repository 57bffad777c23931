"""Several processes and sharded models: ranks, collectives, rendezvous, launching, DeepSpeed and FSDP2.

Refuses to know models, methods and data: whatever has parameters can be sharded and gathered.
"""
