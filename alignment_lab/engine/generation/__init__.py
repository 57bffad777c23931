"""Answers of a causal model: greedy or sampled, several to a prompt, the same whatever they are batched with.

`generate` takes and gives token ids, `stream` gives those of one answer as they come; `generate_answers`
takes rows and gives texts. Refuses to judge what it generates.
"""

from .answers import generate_answers
from .decoding import generate
from .sampling import Completion, Sampling
from .stream import stream

__all__ = ["Completion", "Sampling", "generate", "generate_answers", "stream"]
