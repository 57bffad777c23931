"""Hydra sweepers that choose cells by earlier results; refuses to know where and how a cell runs."""
