"""Answers are those of transformers' own `generate`, with the engine's log-probabilities, in any batch."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import FAMILIES, small_model
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from alignment_lab.distributed import collectives, ranks
from alignment_lab.engine.choice import choose_engine
from alignment_lab.engine.generation import (
    Completion,
    Sampling,
    choice,
    decoding,
    generate,
    recomputed,
    stream,
)
from alignment_lab.engine.generation.planning import Budget, plan_batches
from alignment_lab.engine.generation.sampling import choose_tokens, uniform_draws
from alignment_lab.engine.logprobs import score_sequences
from alignment_lab.engine.packing import ScoredSequence

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14], [15], [5, 6, 7], list(range(20, 40))]
GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.9, n=3, seed=4)
STOPS = [2, 7, 30, 31]
PACKED = "shared prompts"
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {  # how they decode, what the small model needs
    "opt": (PACKED, {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "stablelm": ("transformers' cache", {}),  # it drops layouts
    "mamba": ("transformers' cache", {"state_size": 4}),
    "lfm2": ("transformers' cache", {"layer_types": ["conv", "full_attention"]}),
    "gemma3_text": ("transformers' cache", {"head_dim": 8, "sliding_window": 8}),
    "bloom": ("transformers' cache", {"implementation": "eager", "n_layer": 2, "n_head": 4}),
    "codegen": (
        "transformers' cache",
        {"implementation": "eager", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    ),
}
FAST = ["gpt2", "stablelm", "mamba"]  # keys shared, a cache of keys, a cache of states
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 12}
LONGROPE |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


def answers(
    model: Any,
    sampling: Sampling,
    prompts: list[list[int]] = PROMPTS,
    max_tokens: int = 10_000,
    **options: Any,
) -> list[list[Completion]]:
    return generate(
        model,
        prompts,
        sampling,
        stop_ids=STOPS,
        max_tokens=max_tokens,
        device=CPU,
        dtype=next(model.parameters()).dtype,
        **options,
    )


def token_ids(completions: list[list[Completion]]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in of_prompt] for of_prompt in completions]


def way(model: Any) -> str:
    """The name of the one way by which this model has decoded."""
    (decoder,) = choice._chosen[model].values()
    return decoder.name


def greedy_of_transformers(model: Any, prompt: list[int], **options: Any) -> list[int]:
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": STOPS, "pad_token_id": 0}
    output = model.generate(torch.tensor([prompt]), **settings, **options)
    return list(output[0, len(prompt) :].tolist())


def assert_logps_are_the_engines(
    model: Any, completions: list[list[Completion]], prompts: list[list[int]] = PROMPTS
) -> None:
    engine, _ = choose_engine(model, 40, 1000)
    pairs = [
        (ScoredSequence(prompt, answer.token_ids), answer)
        for prompt, of_prompt in zip(prompts, completions, strict=True)
        for answer in of_prompt
    ]
    logps = score_sequences(model, [sequence for sequence, _ in pairs], engine, torch.float64, iter)
    for values, (_, answer) in zip(logps, pairs, strict=True):
        assert answer.logps == pytest.approx(values.tolist(), abs=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in FAST else pytest.mark.slow)
        for family in (*FAMILIES, *OTHERS)
    ],
)
def test_answers_are_transformers_own_with_the_engines_logps_in_any_batch(family: str) -> None:
    """With 3 answers to a prompt, too, which leave the batch as they stop; in batches of a single row."""
    expected_way, settings = OTHERS.get(family, (PACKED, {}))
    model = small_model(family, **settings)
    greedy, sampled = answers(model, GREEDY), answers(model, SAMPLED)
    assert way(model) == expected_way
    for prompt, (answer,) in zip(PROMPTS, greedy, strict=True):
        assert answer.token_ids == greedy_of_transformers(model, prompt)
    for answer in itertools.chain(*greedy, *sampled):
        assert answer.finished == (answer.token_ids[-1] in STOPS)
        assert not set(answer.token_ids[:-1]) & set(STOPS)
        assert answer.finished or len(answer.token_ids) == 12
    assert_logps_are_the_engines(model, greedy)
    assert_logps_are_the_engines(model, sampled)
    for options in ({"max_tokens": 1}, {"max_tokens": 80}, {"max_rows": 4}):
        assert token_ids(answers(model, SAMPLED, PROMPTS[::-1], **options))[::-1] == token_ids(sampled)
    for sampling, given in ((GREEDY, greedy), (SAMPLED, sampled)):  # in turn, as two models answer
        streams = [
            stream(model, prompt, sampling, stop_ids=STOPS, device=CPU, dtype=torch.float64)
            for prompt in PROMPTS[:2]
        ]
        streamed = zip(*itertools.zip_longest(*streams), strict=True)
        tokens = [[token for token in answer if token is not None] for answer in streamed]
        assert tokens == [of_prompt[0].token_ids for of_prompt in given[:2]]


@pytest.mark.usefixtures("in_float64")
def test_a_model_whose_cache_is_not_exact_decodes_without_one_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Positions that change with the longest sequence of a call: a key in a cache would keep the old ones.

    A sequence that grows beyond 12 tokens is scored as it was when each token was drawn.
    """
    model = small_model("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=12)
    sampled = answers(model, SAMPLED)
    for prompt, (answer,) in zip(PROMPTS, answers(model, GREEDY), strict=True):
        assert answer.token_ids == greedy_of_transformers(model, prompt, use_cache=False)
    assert "no cache" in way(model)
    assert "because its longrope positions change beyond 12 tokens" in capsys.readouterr().err
    assert token_ids(answers(model, SAMPLED, max_rows=4)) == token_ids(sampled)
    assert capsys.readouterr().err == ""  # told once
    assert_logps_are_the_engines(model, sampled[-1:], PROMPTS[-1:])


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("breaks", ["the layout", "the cache"])
def test_a_forward_that_does_not_continue_what_it_is_given_is_detected(
    breaks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in remote code: it drops the layout, or computes only the new tokens whatever the cache holds."""
    model = small_model("llama")
    expected = token_ids(answers(small_model("llama"), GREEDY))
    forward = model.model.forward
    dropped = "layout" if breaks == "the layout" else "past_key_values"

    def careless(*arguments: Any, **keywords: Any) -> Any:
        return forward(*arguments, **{name: value for name, value in keywords.items() if name != dropped})

    monkeypatch.setattr(model.model, "forward", careless)
    assert token_ids(answers(model, GREEDY)) == expected
    assert way(model).startswith("transformers' cache" if breaks == "the layout" else "no cache")
    assert f"generation: {way(model)}, because " in capsys.readouterr().err


@pytest.mark.usefixtures("in_float64")
def test_an_adapter_answers_switched_on_and_off() -> None:
    base = answers(small_model("llama"), SAMPLED)
    torch.manual_seed(1)
    policy = get_peft_model(small_model("llama"), LoraConfig(r=4, init_lora_weights=False)).double()
    adapted = answers(policy, SAMPLED)
    assert token_ids(adapted) != token_ids(base)
    assert_logps_are_the_engines(policy, adapted)
    with policy.disable_adapter():
        assert token_ids(answers(policy, SAMPLED)) == token_ids(base)


class Processes:
    """Threads that the lab takes for processes. One that waits for the others in vain fails."""

    def __init__(self, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world_size, self.values = world_size, [None] * world_size
        self.barrier, self.local = threading.Barrier(world_size, timeout=20), threading.local()
        monkeypatch.setattr(ranks, "rank", lambda: self.local.rank)
        monkeypatch.setattr(ranks, "world_size", lambda: world_size)
        monkeypatch.setattr(collectives, "all_gather", self.all_gather)
        monkeypatch.setattr(collectives, "any_process", lambda flag: any(self.all_gather(flag)))

    def all_gather(self, value: Any) -> list[Any]:
        self.values[self.local.rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        def start(rank: int) -> Any:
            self.local.rank = rank
            return work(rank)

        with ThreadPoolExecutor(self.world_size) as pool:
            return list(pool.map(start, range(self.world_size)))


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("family", "world_size", "sharded"),
    [
        ("llama", 3, True),
        ("llama", 3, False),
        pytest.param("stablelm", 2, True, marks=pytest.mark.slow),
        pytest.param("phi3", 2, True, marks=pytest.mark.slow),
    ],
)
def test_processes_answer_as_one_does_and_under_sharding_by_the_same_number_of_forward_calls(
    family: str, world_size: int, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call is a collective one then, also of a process whose answers are done, or that has none: 15 answers
    make batches of 4 and one of 3.
    """
    settings = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 12}
    models = [small_model(family, **(settings if family == "phi3" else {})) for _ in range(world_size + 1)]
    expected = token_ids(answers(models.pop(), SAMPLED))
    for module in (decoding, recomputed):
        monkeypatch.setattr(module, "is_sharded", lambda model: sharded)
    calls: list[list[int]] = [[] for _ in models]

    def work(rank: int) -> list[list[list[int]]]:
        models[rank].register_forward_pre_hook(lambda *_: calls[rank].append(1))
        return token_ids(answers(models[rank], SAMPLED, max_rows=4))

    assert Processes(world_size, monkeypatch).run(work) == [expected] * world_size
    assert (len({len(made) for made in calls}) == 1) == sharded


def test_a_draw_is_the_answers_own_and_a_longer_answer_continues_it() -> None:
    sampling = replace(SAMPLED, max_new_tokens=5)
    draws = uniform_draws([1, 2], sampling, 0)
    assert draws.tolist() == uniform_draws([1, 2], replace(sampling, n=9, max_new_tokens=9), 0)[:5].tolist()
    others = [
        uniform_draws([1, 2], sampling, 1),
        uniform_draws([2, 1], sampling, 0),
        uniform_draws([1, 2], replace(sampling, seed=5), 0),
        uniform_draws([258], sampling, 0),  # the bytes of [1, 2], were an id one byte
    ]
    assert len({tuple(one) for one in [draws, *others]}) == 5
    model = small_model("llama", dtype=torch.float32)
    short = answers(model, replace(SAMPLED, max_new_tokens=4))
    for of_prompt, longer in zip(short, answers(model, SAMPLED), strict=True):
        assert [one.token_ids for one in of_prompt] == [one.token_ids[:4] for one in longer]
    same = answers(model, SAMPLED, [PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    assert same[0] == same[2] and token_ids([same[0]])[0][0] != token_ids([same[0]])[0][1]
    (greedy,) = answers(model, replace(GREEDY, n=3), PROMPTS[:1])
    assert len(greedy) == 3 and greedy[0] == greedy[1] == greedy[2]


@pytest.mark.parametrize("vocabulary", [40, 1000])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (2.5, 0.95)])
def test_tokens_are_drawn_as_transformers_weighs_them(
    vocabulary: int, temperature: float, top_p: float
) -> None:
    """Evenly spaced numbers hit each token as often as its probability after transformers' own warpers says,
    to one in their count; and log p is that of the model itself.
    """
    torch.manual_seed(0)
    logits, count = torch.randn(1, vocabulary) * 2, 4000
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    sampling = Sampling(1, temperature, top_p)
    chosen = [choose_tokens(logits.expand(len(part), -1), sampling, part) for part in draws.split(count // 4)]
    tokens = torch.cat([part for part, _ in chosen])
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    expected = warped.softmax(-1)[0]
    assert float((tokens.bincount(minlength=vocabulary) / count - expected).abs().max()) <= 1.01 / count
    logps = torch.cat([part for _, part in chosen])
    torch.testing.assert_close(logps, logits.log_softmax(-1)[0][tokens])


@pytest.mark.parametrize("shares_prompts", [True, False])
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("max_tokens", [1, 100, 250, 10_000])
def test_a_plan_holds_every_answer_once_within_its_budget(
    max_tokens: int, processes: int, shares_prompts: bool
) -> None:
    lengths, budget = [5, 90, 30, 30, 7], Budget(max_tokens, 9, 10, shares_prompts)
    batches = plan_batches(lengths, 4, budget, processes)
    planned = [(share.prompt, answer) for batch in batches for share in batch for answer in share.answers]
    assert sorted(planned) == list(itertools.product(range(5), range(4)))
    assert len(batches) >= processes
    for batch in batches:
        rows = sum(len(share.answers) for share in batch)
        width = max(lengths[share.prompt] for share in batch)
        tokens = width * (len(batch) if shares_prompts else rows) + 10 * rows
        assert rows == 1 or (tokens <= max_tokens and rows <= 9)
