"""The speed of sampling: tokens a second of several answers to each prompt, of the lab and of transformers.

transformers' `generate` gets every prompt as often as it has answers, which is how it is called for that; no
answer stops early. Both sides take turns in one process, on the same weights, and each is tried once before.
The same process compares the lab's greedy answers with those of `generate`, its log-probabilities with those
of whole sequences, and its answers in batches of several sizes.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from .cases import Job
from .costs import Notify, Result, cost_ratios, transformers_model
from .process import run_job

PROMPTS, PROMPT_TOKENS, ANSWERS, ANSWER_TOKENS = 4, 150, 8, 64
TOLERANCE = 1e-4  # nats


def measure(*, model: str, repeats: int, quick: bool, notify: Notify) -> Result:
    """Rounds of both sides, and whether the answers are those that they should be."""
    notify(f"generation: {repeats} rounds of both sides")
    shape = {
        "prompts": PROMPTS,
        "prompt_tokens": PROMPT_TOKENS,
        "answers": ANSWERS,
        "answer_tokens": 8 if quick else ANSWER_TOKENS,
        "repeats": repeats,
    }
    with transformers_model(model) as folder:
        figures = run_job(Job("lab.generation", model=model, weights=folder, settings=shape))
    checks = figures["checks"]
    generated = shape["prompts"] * shape["answers"] * shape["answer_tokens"]
    sides: dict[str, list[dict[str, Any]]] = figures["sides"]
    return {
        **shape,
        "prompt_lengths": figures["prompt_lengths"],
        "decodes_by": figures["decodes_by"],
        "sides": sides,
        "tokens_per_second": {
            side: generated / median(run["seconds"] for run in runs) for side, runs in sides.items()
        },
        "ratios": {
            key: cost_ratios(sides["lab"], sides["transformers"], key) for key in ("seconds", "cpu_seconds")
        },
        "checks": checks,
        "process": figures["process"],
        "comparable": checks["greedy_equal"]
        and checks["batches_equal"]
        and checks["logps_differ_by"] <= TOLERANCE,
    }
