"""A sweep and its cells: composing, checking, launching, following and searching.

Refuses to know how a cell trains; imports no torch.
"""
