"""The sources that come with the lab: each composes, and rows of its dataset's shape convert for its methods.

The rows' words are invented; columns and nesting are the datasets' own.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from alignment_lab.config import METHOD_SCHEMAS, Format
from alignment_lab.config.compose import CONF
from alignment_lab.data.formats import choose_converter, filled_columns
from alignment_lab.data.mixture import passes, rename

OWN = ("local", "hub", "embedded")  # of no dataset in particular
NAMES = sorted(file.stem for file in (CONF / "data/source").glob("*.yaml") if file.stem not in OWN)

ASK, GOOD, BAD = "Which river is longest?", "The Nile, by most counts.", "A long one."
USER = {"role": "user", "content": ASK}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


TALK = [USER, assistant(GOOD)]
LONG_TALK = [*TALK, {"role": "user", "content": "And the widest?"}, assistant("The Amazon.")]
CHATS = {"chosen": TALK, "rejected": [USER, assistant(BAD)]}
PROMPTED = {"prompt": ASK, "prompt_id": "a1", **CHATS}
SCORED = {**PROMPTED, "messages": TALK, "score_chosen": 8.5, "score_rejected": 4.0}
MESSAGES = {"messages": LONG_TALK}
THINKING = {"custom_instructions": None, "enable_thinking": True, "python_tools": None, "xml_tools": None}
THOUGHT = {**CHATS, "prompt": ASK, "chat_template_kwargs": THINKING, "source": "x"}
SCORES = {"helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
CONSTITUTIONAL = {
    **PROMPTED, **MESSAGES, "index": 0, "init_prompt": USER, "init_response": assistant(BAD),
    "critic_prompt": USER, "critic_response": assistant("Vague."), "revision_prompt": USER,
    "revision_response": assistant(GOOD),
}  # fmt: skip


def completion(text: str, score: float) -> dict[str, Any]:
    return {
        "model": "m",
        "principle": "helpfulness",
        "custom_system_prompt": "Help.",
        "critique": "It is so.",
        "fine-grained_score": score,
        "overall_score": score * 2,
        "response": text,
        "annotations": {"helpfulness": {"Rating": "4", "Rationale": "x", "Type": ["1"]}},
    }


ROWS: dict[str, dict[str, Any]] = {
    "ultrafeedback_binarized": SCORED,
    "ultrafeedback": {
        "source": "evol_instruct", "instruction": ASK, "models": ["a", "b"], "correct_answers": ["None"],
        "incorrect_answers": ["None"], "completions": [completion(BAD, 2.0), completion(GOOD, 4.5)],
    },
    "ultrafeedback_cleaned": {
        "source": "ultrachat", "prompt": ASK, **CHATS, "chosen-rating": 5.0, "chosen-model": "a",
        "rejected-rating": 3.0, "rejected-model": "b",
    },
    "ultrafeedback_trl": {**CHATS, "score_chosen": 8.0, "score_rejected": 3.0},
    "ultrafeedback_armorm": {
        "prompt_id": "a1", "prompt": ASK, "all_generated_responses": [GOOD, BAD], "all_rm_scores": [0.2, 0.1],
        **CHATS,
    },
    "ultra_feedback_dutch": PROMPTED,
    "hh_rlhf": {
        "chosen": f"\n\nHuman: {ASK}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {ASK}\n\nAssistant: {BAD}",
    },
    "orca_dpo_pairs": {"system": "Be brief.", "question": ASK, "prompt": ASK, **CHATS},
    "orca_dpo_pairs_intel": {"system": "Be brief.", "question": ASK, "chosen": GOOD, "rejected": BAD},
    "dpo_mix_7k": {"dataset": "capybara", **CHATS, "chosen_rating": 5.0, "rejected_rating": 4.0},
    "capybara_dpo_7k": {
        "source": "Dove", "conversation": [{"input": ASK, "output": GOOD}], "original_response": GOOD,
        "prompt": ASK, **CHATS, "rating_chosen": 5, "rating_rejected": 3, "chosen_model": "a",
    },
    "cai_conversation_harmless": CONSTITUTIONAL,
    "cai_conversation_harmless_sft": CONSTITUTIONAL,
    "grok_conversation_harmless": CONSTITUTIONAL,
    "grok_conversation_harmless_sft": CONSTITUTIONAL,
    "tulu_3_preference_8b": {"id": "1", "source": "x", "prompt": ASK, **CHATS},
    "skywork_preference": {**CHATS, "source": "magpie"},
    "smoltalk2_preference_no_think": THOUGHT,
    "smoltalk2_preference_think": THOUGHT,
    "shp": {
        "post_id": "p", "domain": "askscience_train", "history": ASK, "human_ref_A": BAD, "human_ref_B": GOOD,
        "labels": 0, "score_A": 3, "score_B": 30, "score_ratio": 10.0,
    },
    "helpsteer3": {
        "domain": "general", "language": "english", "context": [USER], "response1": GOOD, "response2": BAD,
        "overall_preference": -2, "individual_preference": [{"score": -2, "reasoning": "x", "feedback": "y"}],
    },
    "helpsteer2": {"prompt": ASK, "response": GOOD, **SCORES},
    "helpsteer": {"prompt": ASK, "response": GOOD, **SCORES},
    "kto_mix_14k": {"prompt": [USER], "completion": [assistant(GOOD)], "label": True},
    "tldr": {"prompt": ASK, "completion": GOOD},
    "ultrachat_200k": {"prompt": ASK, "prompt_id": "a1", **MESSAGES},
    "ultrachat_200k_dutch": {"prompt": ASK, "prompt_id": "a1", **MESSAGES},
    "no_robots": {"prompt": ASK, "prompt_id": "a1", **MESSAGES, "category": "Open QA"},
    "capybara": {"source": "Dove", **MESSAGES},
    "capybara_ldj": {
        "source": "Dove", "conversation": [{"input": ASK, "output": GOOD}, {"input": "Why?", "output": "So"}],
    },
    "deita_10k": {"prompt": ASK, "prompt_id": "a1", **MESSAGES},
    "smoltalk": {**MESSAGES, "source": "smol-magpie-ultra"},
    "smol_smoltalk": {**MESSAGES, "source": "smol-magpie-ultra"},
    "smoltalk2_sft": {**MESSAGES, "chat_template_kwargs": THINKING, "source": "x"},
    "smoltalk2_mid": {"messages": TALK, "source": "x"},
    "tulu_3_sft": {"id": "1", **MESSAGES, "source": "x"},
    "alpaca": {"instruction": ASK, "input": "", "output": GOOD, "text": f"### Instruction:\n{ASK}"},
    "openorca": {"id": "niv.1", "system_prompt": "Be brief.", "question": ASK, "response": GOOD},
    "openhermes_2.5": {
        "conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": GOOD}],
        "system_prompt": None, "source": "airoboros2.2", "category": "orca", "model": None,
    },
    "mc4_nl_cleaned": {"text": GOOD, "timestamp": "2020-02-02T00:00:00", "url": "https://example.org"},
    "fineweb_edu": {"text": GOOD, "id": "<urn:1>", "dump": "CC", "url": "https://example.org", "score": 3.1},
}  # fmt: skip
for plain in (
    "airoboros", "code_feedback", "orca_math", "system_chat", "magpie_pro_300k", "self_oss_instruct",
    "openhermes_2.5_h4", "everyday_conversations", "instruct_data_basics",
):  # fmt: skip
    ROWS[plain] = MESSAGES

TURNS = {Format.preference: ("chosen", "rejected"), Format.unpaired: ("completion",)}


@pytest.fixture(scope="module")
def sources():
    """All of them, composed at once."""
    from hydra import initialize_config_dir

    from alignment_lab.config import compose

    compose.register_with_hydra()
    choices = [f"+data/source@data.sources.s{index}={name}" for index, name in enumerate(NAMES)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        spec = compose.compose_experiment(["data=mixture", *choices])
    return {name: spec.data.sources[f"s{index}"] for index, name in enumerate(NAMES)}


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_its_shape_converts_for_its_methods(name, sources):
    comment = (CONF / f"data/source/{name}.yaml").read_text().splitlines()[0]
    call = re.fullmatch(
        rf"# [A-Z].+\.  python train\.py method=(\w+) data=mixture \+data/source@data\.sources\.\w+={name}",
        comment,
    )
    assert call, comment
    source = sources[name]
    assert source.path.count("/") == 1
    assert passes(ROWS[name], source.filter)
    row = rename(ROWS[name], source.columns)
    formats = {METHOD_SCHEMAS[call[1]].format}
    if Format.preference in formats:
        formats |= {Format.conversation, Format.unpaired}
    for format in formats:
        converted = choose_converter(format, filled_columns([row]), name)(row)
        assert len(converted) == (2 if format is Format.unpaired and "label" not in row else 1)
        for one in converted:
            check(one, format)


def check(row: dict[str, Any], format: Format) -> None:
    """The good answer is the one that is preferred, and the question stands before it once."""
    if format is Format.text:
        assert row["text"] == GOOD
        return
    messages = row["messages"] if "messages" in row else [*row["prompt"], *row.get("completion", ())]
    assert [message["content"] for message in messages].count(ASK) == 1
    if format is Format.preference:
        assert [row["chosen"][-1]["content"], row["rejected"][-1]["content"]] == [GOOD, BAD]
        assert row["prompt"][-1]["content"] == ASK
    elif format is Format.unpaired:
        assert row["completion"][-1]["content"] == (GOOD if row["label"] else BAD)
    else:
        assert messages[-1]["role"] == "assistant" and GOOD in [message["content"] for message in messages]


def test_those_that_carry_system_turns_and_template_settings_keep_them(sources):
    for name in ("orca_dpo_pairs_intel", "openorca"):
        row = rename(ROWS[name], sources[name].columns)
        (converted,) = choose_converter(Format.conversation, filled_columns([row]), name)(row)
        assert converted["messages"][0] == {"role": "system", "content": "Be brief."}
    (converted,) = choose_converter(
        Format.preference, filled_columns([ROWS["smoltalk2_preference_think"]]), ""
    )(ROWS["smoltalk2_preference_think"])
    assert converted["chat_template_kwargs"] == {"enable_thinking": True}
