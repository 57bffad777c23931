"""Benchmarks that other packages define: run through them, or written for their judges and read back.

None of the packages is needed to install or to import the lab; `packages` says what is missing.
"""
