"""The results of a run or a sweep: a table in the terminal, one self-contained page, and files for others.

Reads run directories only, whatever made them, and never imports torch.
"""
