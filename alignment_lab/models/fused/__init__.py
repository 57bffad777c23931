"""Fused forward and backward passes of well-known layers, for CUDA: fewer kernels, fewer bytes, one answer.

A stock transformers model is patched from outside, module by module, where module and numbers are recognised.
"""
