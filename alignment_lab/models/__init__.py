"""Models as a run needs them: found, loaded, quantized, adapted, with packed attention registered.

Refuses to know data, losses and the training loop.
"""
