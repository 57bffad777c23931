"""Answers are those of transformers' own `generate`, with the engine's log-probabilities, in any batch."""

import pytest
import torch
from small_models import FAMILIES, small_model

from alignment_lab.engine.choice import choose_engine
from alignment_lab.engine.generation import Completion, Sampling, generate
from alignment_lab.engine.logprobs import score_sequences
from alignment_lab.engine.packing import ScoredSequence

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14], [15], [5, 6, 7], list(range(20, 40))]
GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.9, n=3, seed=4)
STOPS = [2, 7, 30, 31]
OTHERS = {  # more than softmax(QK)V over a cache of keys and values, or an attention of its own
    "mamba": {"state_size": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "stablelm": {},
    "bloom": {
        "implementation": "eager",
        "n_layer": 2,
        "n_head": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "codegen": {"implementation": "eager", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
}


def answers(model, sampling, prompts=PROMPTS, max_tokens=10_000, **options) -> list[list[Completion]]:
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


def greedy_of_transformers(model, prompt: list[int], max_new_tokens: int) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=STOPS,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_answers_are_transformers_own_with_the_engines_logps_in_any_batch(family):
    model = small_model(family, **OTHERS.get(family, {}))
    engine, _ = choose_engine(model, 40, 1000)
    greedy, sampled = answers(model, GREEDY), answers(model, SAMPLED)
    for prompt, (completion,) in zip(PROMPTS, greedy, strict=True):
        assert completion.token_ids == greedy_of_transformers(model, prompt, 12)
    for completions in (greedy, sampled):
        scored = [
            (ScoredSequence(prompt, answer.token_ids), answer)
            for prompt, all_answers in zip(PROMPTS, completions, strict=True)
            for answer in all_answers
        ]
        logps = score_sequences(model, [sequence for sequence, _ in scored], engine, torch.float64, iter)
        for values, (_, answer) in zip(logps, scored, strict=True):
            assert answer.logps == pytest.approx(values.tolist(), abs=1e-9)
            assert answer.finished == (answer.token_ids[-1] in STOPS)
            assert not set(answer.token_ids[:-1]) & set(STOPS)
            assert answer.finished or len(answer.token_ids) == 12
    for options in ({"max_tokens": 1}, {"max_tokens": 80}, {"max_rows": 4}):
        again = answers(model, SAMPLED, PROMPTS[::-1], **options)
        assert [[one.token_ids for one in of_prompt] for of_prompt in again[::-1]] == [
            [one.token_ids for one in of_prompt] for of_prompt in sampled
        ]
