"""alignment_lab: compose, run and honestly compare language-model alignment experiments."""

__version__ = "0.1.0"
