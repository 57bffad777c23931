"""What the lab costs beside TRL, on the same rows, model and machine.  python -m benchmarks --help

Not part of the package: run it from the root of a checkout.
"""
