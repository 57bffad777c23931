"""A talk with one model or two: in a terminal, over a pipe, or through an OpenAI-compatible endpoint."""
