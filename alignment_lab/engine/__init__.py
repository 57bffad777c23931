"""The engine: log-probabilities and answers of a causal model, and cached reference log-probabilities.

Refuses to know losses, methods and the columns of a data set: it takes token ids.
"""
