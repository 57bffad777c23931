"""Who says which of two answers is better: a reward model, a chat model with a rubric, an endpoint."""
