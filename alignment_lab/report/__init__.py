"""What a run or a sweep came to: a table in the terminal, one self-contained page, and report.json for a sweep.

Reads run directories only. Refuses to know how they were made, and never imports torch.
"""
