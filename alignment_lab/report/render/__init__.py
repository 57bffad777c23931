"""Runs and comparisons for readers: the terminal, pages, files, sentences. Judges nothing: study/ does."""
