"""Answers of the lab and of transformers' `generate`, in turn in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from alignment_lab import data
from alignment_lab.data.templates import encode_prompts
from alignment_lab.engine.choice import choose_engine
from alignment_lab.engine.generation import Completion, Sampling, generate
from alignment_lab.engine.generation.choice import choose_decoder
from alignment_lab.engine.logprobs import evaluation_mode, score_sequences
from alignment_lab.engine.packing import ScoredSequence
from alignment_lab.models.loading import load_model
from alignment_lab.models.tokenizer import load_tokenizer

from .cases import Job
from .clock import Clock
from .lab import compose_experiment

MAX_TOKENS = 16_384  # of a batch
BATCHES = [{"max_rows": 3}, {"max_rows": 8}, {"max_tokens": 2048}]  # in which the answers must be the same
CHECKED_TOKENS = 24  # of an answer, where batches are compared
CPU, DTYPE = torch.device("cpu"), torch.float32


def measure(job: Job) -> dict[str, Any]:
    """Seconds of each side's rounds, and what the answers were compared with."""
    shape, spec, folder = job.settings, compose_experiment(job), Path(job.weights)
    model = load_model(spec.model, folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).eval()
    prompts = _prompts(job)
    engine, _ = choose_engine(model, max(map(len, prompts)) + shape["answer_tokens"], MAX_TOKENS, CPU, DTYPE)

    def answer(sampling: Sampling, **options: int) -> list[list[Completion]]:
        budget = {"max_tokens": MAX_TOKENS, **options}
        return generate(model, prompts, sampling, stop_ids=[], device=CPU, dtype=DTYPE, **budget)

    sampling = Sampling(shape["answer_tokens"], temperature=1.0, n=shape["answers"])
    sides: dict[str, Callable[[], Any]] = {
        "lab": lambda: answer(sampling),
        "transformers": lambda: _generate(plain, prompts, sampling),
    }
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    torch.manual_seed(0)
    for number in range(shape["repeats"] + 1):
        for side, work in sides.items():
            clock = Clock()
            with clock.running():
                work()
            if number:  # the first round is a trial
                rounds[side].append({"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds})
    with evaluation_mode(model, DTYPE):
        way = choose_decoder(model, prompts, max(map(len, prompts)) + shape["answer_tokens"], CPU, DTYPE)
    greedy = [of_prompt[0].token_ids for of_prompt in answer(Sampling(shape["answer_tokens"]))]
    sampled = answer(sampling)
    short = Sampling(
        min(CHECKED_TOKENS, shape["answer_tokens"]), temperature=1.0, top_p=0.9, n=shape["answers"]
    )
    tokens = [_token_ids(answer(short, **options)) for options in ({}, *BATCHES)]
    return {
        "prompt_lengths": [len(prompt) for prompt in prompts],
        "decodes_by": way.name,
        "sides": rounds,
        "checks": {
            "greedy_equal": greedy == _generate(plain, prompts, Sampling(shape["answer_tokens"])),
            "batches": BATCHES,
            "batches_equal": all(one == tokens[0] for one in tokens),
            "logps_differ_by": _largest_difference(model, engine, prompts, sampled),
        },
    }


def _prompts(job: Job) -> list[list[int]]:
    """Questions of the embedded rows, as many in a prompt as make it long enough."""
    spec, shape = compose_experiment(job), job.settings
    tokenizer = load_tokenizer(spec.model, Path(job.weights))
    questions = [row["prompt"][-1]["content"] for row in data.load_rows(spec).train]
    prompts: list[list[int]] = []
    asked: list[str] = []
    for question in dict.fromkeys(questions):
        asked.append(question)
        (ids,) = encode_prompts(tokenizer, [{"prompt": [{"role": "user", "content": " ".join(asked)}]}])
        if len(ids) >= shape["prompt_tokens"]:
            prompts.append(list(ids))
            asked = []
        if len(prompts) == shape["prompts"]:
            break
    return prompts


def _generate(model: Any, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
    """transformers' answers, each prompt repeated `n` times."""
    rows = [prompt for prompt in prompts for _ in range(sampling.n)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    draws = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=None,
        pad_token_id=0,
        **(draws if sampling.temperature else {"do_sample": False}),
    )
    answers: list[list[int]] = output[:, width:].tolist()
    return answers


def _token_ids(answers: list[list[Completion]]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in of_prompt] for of_prompt in answers]


def _largest_difference(
    model: Any, engine: Any, prompts: list[list[int]], answers: list[list[Completion]]
) -> float:
    """Between a token's log-probability as it was drawn and as the engine scores the whole sequence: nats."""
    pairs = [
        (ScoredSequence(prompt, answer.token_ids), answer.logps)
        for prompt, of_prompt in zip(prompts, answers, strict=True)
        for answer in of_prompt
    ]
    scored = score_sequences(model, [sequence for sequence, _ in pairs], engine, DTYPE, iter)
    return max(
        float((values - torch.tensor(logps)).abs().max())
        for values, (_, logps) in zip(scored, pairs, strict=True)
    )
