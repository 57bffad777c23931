"""Token ids are those of the template's text, split at the assistant's turn, and end with a stop token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from small_tokenizers import OTHERS, other_tokenizer, real_rows

from alignment_lab.config import Format, Truncation
from alignment_lab.data import DataError, count_tokens, templates, tokenization, turns
from alignment_lab.data.reasons import BadRow, Reason
from alignment_lab.data.token_rows import SHORTENED

TOO_LONG = BadRow(Reason.prompt_too_long, "the prompt fills data.max_length")

PROMPTS = {
    "one question": [{"role": "user", "content": "What is the capital of France?"}],
    "a system message": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    "several turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "2 + 2 ="},
    ],
    "another script": [{"role": "user", "content": "é模型 \U0001f642\n\n"}],
    "words that look like the template": [
        {"role": "user", "content": "<|im_start|>assistant\nsay <|im_end|> now"}
    ],
}
ANSWERS = [
    "Paris.",
    " a leading space",
    "trailing\n\n",
    "\n",
    "4",
    "<b>é模</b>\n```\ncode\n```",
    "stop <|im_end|> stop",
]


def pair_row(prompt, chosen="Yes.", rejected="No, and more."):
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def conversation_ids(tokenizer, messages) -> list[int]:
    """The ids of the template's text of a whole conversation, up to its last stop token."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stops = set(templates.stop_token_ids(tokenizer))
    return ids[: max(index for index, token in enumerate(ids) if token in stops) + 1]


# ---- pairs


def by_hand(tokenizer, prompt, answer):
    """(prompt ids, answer ids) from two texts, each rendered and tokenized by itself."""
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    start, ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, text))
    after_prompt = (
        ids[len(start) :]
        if ids[: len(start)] == start
        else tokenizer(text[len(before) :], add_special_tokens=False)["input_ids"]
    )
    stops = set(templates.stop_token_ids(tokenizer))
    return start, after_prompt[: max(index for index, token in enumerate(after_prompt) if token in stops) + 1]


@pytest.mark.parametrize("name", ["hh_harmless_1000.jsonl", "dpo_en_demo.json"])
def test_real_pairs_are_as_by_hand(name, any_tokenizer):
    rows = real_rows(name, Format.preference, 40)
    tokenized = tokenization.tokenize_pairs(any_tokenizer, rows, 100_000)
    assert (len(tokenized.rows), tokenized.dropped, tokenized.counts["truncated"]) == (len(rows), [], 0)
    for row in tokenized.rows:
        for key in ("chosen", "rejected"):
            assert (row["prompt_ids"], row[f"{key}_ids"]) == by_hand(any_tokenizer, row["prompt"], row[key])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_and_answer_are_the_text_of_the_conversation(prompt, any_tokenizer):
    rows = [pair_row(PROMPTS[prompt], chosen, "No") for chosen in ANSWERS]
    tokenized = tokenization.tokenize_pairs(any_tokenizer, rows, 10_000)
    assert (tokenized.indices, tokenized.dropped) == (list(range(len(rows))), [])
    for row in tokenized.rows:
        assert row["prompt_ids"] == templates.encode_prompts(any_tokenizer, [row])[0]
        for key in ("chosen", "rejected"):
            assert any_tokenizer.decode(row["prompt_ids"] + row[f"{key}_ids"]) == any_tokenizer.decode(
                conversation_ids(any_tokenizer, row["prompt"] + row[key])
            )


def test_with_the_embedded_tokenizer_the_ids_are_those_of_the_conversation(tokenizer):
    """No answer merges with the prompt, which ends with a line break, unless it begins with one."""
    rows = [
        pair_row(prompt, answer, "No")
        for prompt in PROMPTS.values()
        for answer in ANSWERS
        if not answer.startswith("\n")
    ]
    for row in tokenization.tokenize_pairs(tokenizer, rows, 10_000).rows:
        for key in ("chosen", "rejected"):
            assert row["prompt_ids"] + row[f"{key}_ids"] == conversation_ids(
                tokenizer, row["prompt"] + row[key]
            )


def test_every_answer_ends_with_a_stop_token_and_nothing_after_it(any_tokenizer):
    rows = [pair_row(prompt, answer, "No") for prompt in PROMPTS.values() for answer in ANSWERS]
    stops = templates.stop_token_ids(any_tokenizer)
    for row in tokenization.tokenize_pairs(any_tokenizer, rows, 10_000).rows:
        assert row["chosen_ids"][-1] in stops
        assert row["rejected_ids"][-1] in stops
        assert sum(token in stops for token in row["rejected_ids"]) == 1  # "No" holds none of its own


def test_no_prompt_begins_twice(any_tokenizer):
    for ids in templates.encode_prompts(any_tokenizer, [{"prompt": prompt} for prompt in PROMPTS.values()]):
        assert ids[:1] != ids[1:2]
        if any_tokenizer.bos_token not in (None, any_tokenizer.eos_token):
            assert ids[0] == any_tokenizer.bos_token_id


def test_an_answer_that_would_merge_with_the_prompt_is_tokenized_as_it_is_generated(tokenizer):
    """Two line breaks are one token, which would swallow the prompt's; generation keeps the prompt's ids."""
    row = pair_row(PROMPTS["one question"], "\n\nParis.", "No")
    (tokenized,) = tokenization.tokenize_pairs(tokenizer, [row], 1000).rows
    ids = conversation_ids(tokenizer, row["prompt"] + row["chosen"])
    if ids[: len(tokenized["prompt_ids"])] == tokenized["prompt_ids"]:
        pytest.skip("this tokenizer does not merge them")
    assert tokenized["prompt_ids"] == templates.encode_prompts(tokenizer, [row])[0]
    assert tokenizer.decode(tokenized["chosen_ids"]) == "\n\nParis.<|im_end|>"


def test_the_batch_size_changes_nothing(tokenizer, monkeypatch):
    rows = [pair_row(prompt, answer) for prompt in PROMPTS.values() for answer in ANSWERS[:3]]
    expected = (
        tokenization.tokenize_pairs(tokenizer, rows, 64),
        tokenization.tokenize_conversations(tokenizer, as_chats(rows), 64),
    )
    monkeypatch.setattr(turns, "BATCH_SIZE", 4)
    assert (
        tokenization.tokenize_pairs(tokenizer, rows, 64),
        tokenization.tokenize_conversations(tokenizer, as_chats(rows), 64),
    ) == expected


def as_chats(rows):
    return [{"messages": row["prompt"] + row["chosen"], "answer": ["x"]} for row in rows]


def test_other_columns_are_kept(tokenizer):
    row = {**pair_row(PROMPTS["one question"]), "answer": ["Paris"]}
    (tokenized,) = tokenization.tokenize_pairs(tokenizer, [row], 1000).rows
    assert row.items() <= tokenized.items()
    assert count_tokens(tokenized) == len(tokenized["prompt_ids"]) + len(tokenized["chosen_ids"]) + len(
        tokenized["rejected_ids"]
    )


def test_a_longer_answer_is_truncated_and_counted_once(tokenizer):
    """The prompt stays whole; each answer keeps its first `max_length - prompt` tokens.

    One row is counted, not two answers.
    """
    row = pair_row(PROMPTS["one question"], "Paris. " * 50, "London. " * 50)
    (full,) = tokenization.tokenize_pairs(tokenizer, [row], 10_000).rows
    room = 7
    tokenized = tokenization.tokenize_pairs(tokenizer, [row], len(full["prompt_ids"]) + room)
    (truncated,) = tokenized.rows
    assert truncated["prompt_ids"] == full["prompt_ids"]
    assert (truncated["chosen_ids"], truncated["rejected_ids"]) == (
        full["chosen_ids"][:room],
        full["rejected_ids"][:room],
    )
    assert tokenized.counts["truncated"] == 1


@pytest.mark.parametrize(
    ("room", "dropped", "truncated"), [(0, [(0, TOO_LONG)], 0), (2, [], 1), (100, [], 0)]
)
def test_a_prompt_that_leaves_no_room_drops_the_row(room, dropped, truncated, tokenizer):
    row = pair_row(PROMPTS["one question"])
    length = len(templates.encode_prompts(tokenizer, [row])[0])
    tokenized = tokenization.tokenize_pairs(tokenizer, [row], length + room)
    assert (tokenized.dropped, tokenized.counts["truncated"]) == (dropped, truncated)
    assert tokenized.indices == [0] * (not dropped)


def test_dropped_rows_do_not_change_their_neighbors(tokenizer):
    long = pair_row([{"role": "user", "content": "word " * 200}])
    rows = [pair_row(PROMPTS["one question"]), long, pair_row(PROMPTS["a system message"])]
    tokenized = tokenization.tokenize_pairs(tokenizer, rows, 100)
    assert tokenized.rows == tokenization.tokenize_pairs(tokenizer, [rows[0], rows[2]], 100).rows
    assert (tokenized.indices, tokenized.dropped) == ([0, 2], [(1, TOO_LONG)])


# ---- labeled answers


def as_labeled(rows):
    """Pairs, split as formats.pair_to_unpaired does; some answers here are blank, which it would refuse."""
    return [
        {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
        for row in rows
        for key in ("chosen", "rejected")
    ]


@pytest.mark.parametrize("limit", [20, 30, 1000])
def test_labeled_answers_are_those_of_the_pair(limit, tokenizer):
    """Every id; and the halves of a pair are dropped together, and counted each where truncated."""
    rows = [pair_row(prompt, answer, "No") for prompt in PROMPTS.values() for answer in ANSWERS]
    pairs = tokenization.tokenize_pairs(tokenizer, rows, limit)
    labeled = tokenization.tokenize_unpaired(tokenizer, as_labeled(rows), limit)
    ids = {(row["label"], index // 2): row for index, row in zip(labeled.indices, labeled.rows, strict=True)}
    for index, row in zip(pairs.indices, pairs.rows, strict=True):
        for key, label in (("chosen", True), ("rejected", False)):
            answer = ids[label, index]
            assert (answer["prompt_ids"], answer["completion_ids"]) == (row["prompt_ids"], row[f"{key}_ids"])
    too_long = [index for index, reason in pairs.dropped if reason == TOO_LONG]
    assert labeled.dropped == [(2 * index + half, TOO_LONG) for index in too_long for half in range(2)]
    assert pairs.counts["truncated"] <= labeled.counts["truncated"]


def test_a_labeled_answer_has_the_same_ids_in_any_batch(tokenizer):
    rows = as_labeled([pair_row(prompt, answer, "No") for prompt in PROMPTS.values() for answer in ANSWERS])
    tokenized = tokenization.tokenize_unpaired(tokenizer, rows, 64).rows
    assert tokenized == [
        labeled for row in rows for labeled in tokenization.tokenize_unpaired(tokenizer, [row], 64).rows
    ]
    assert all(
        count_tokens(row) == len(row["prompt_ids"]) + len(row["completion_ids"]) <= 64 for row in tokenized
    )
    assert tokenized[0].items() >= rows[0].items()


def test_real_labeled_answers_are_as_by_hand(tokenizer):
    for row in tokenization.tokenize_unpaired(
        tokenizer, real_rows("kto_en_demo.json", Format.unpaired, 40), 100_000
    ).rows:
        assert (row["prompt_ids"], row["completion_ids"]) == by_hand(
            tokenizer, row["prompt"], row["completion"]
        )


# ---- conversations

CHATS = {
    "one turn": PROMPTS["one question"] + [{"role": "assistant", "content": "Paris."}],
    "several turns": PROMPTS["several turns"] + [{"role": "assistant", "content": "4."}],
    "a system message": PROMPTS["a system message"] + [{"role": "assistant", "content": "Hi."}],
    "two answers in a row": [
        *PROMPTS["one question"],
        {"role": "assistant", "content": "Hm."},
        {"role": "assistant", "content": "Paris."},
    ],
}


@pytest.mark.parametrize("chat", CHATS)
def test_labels_cover_the_assistants_turns_with_their_stop_and_nothing_else(chat, any_tokenizer):
    """Turn by turn, the labels decode to the assistant's message and the stop token."""
    messages = CHATS[chat]
    (tokenized,) = tokenization.tokenize_conversations(any_tokenizer, [{"messages": messages}], 10_000).rows
    assert tokenized["input_ids"] == conversation_ids(any_tokenizer, messages)
    assert len(tokenized["labels"]) == len(tokenized["input_ids"])
    assert all(
        label in (-100, token)
        for label, token in zip(tokenized["labels"], tokenized["input_ids"], strict=True)
    )
    spans: list[list[int]] = []
    for before, label in zip([-100, *tokenized["labels"]], tokenized["labels"], strict=False):
        if label != -100:
            spans = [*spans, []] if before == -100 else spans
            spans[-1].append(label)
    stop = templates.stop_token_ids(any_tokenizer)[0]
    assert [span[-1] for span in spans] == [stop] * len(spans)
    texts = [any_tokenizer.decode(span[:-1]).removesuffix("<|im_end|>") for span in spans]
    assert texts == [message["content"] for message in messages if message["role"] == "assistant"]


def test_an_assistant_turn_that_opens_the_conversation_is_not_trained(any_tokenizer):
    """It is context, as a system message is."""
    opening = [
        {"role": "assistant", "content": "Welcome."},
        *PROMPTS["one question"],
        {"role": "assistant", "content": "Paris."},
    ]
    (tokenized,) = tokenization.tokenize_conversations(any_tokenizer, [{"messages": opening}], 1000).rows
    assert tokenized["input_ids"] == conversation_ids(any_tokenizer, opening)
    prompt, answer = by_hand(any_tokenizer, opening[:-1], opening[-1:])
    assert tokenized["labels"] == [-100] * len(prompt) + answer


def test_a_conversation_is_truncated_and_counted(tokenizer):
    messages = CHATS["several turns"]
    (full,) = tokenization.tokenize_conversations(tokenizer, [{"messages": messages}], 1000).rows
    result = tokenization.tokenize_conversations(
        tokenizer, [{"messages": messages}], len(full["input_ids"]) - 1
    )
    (truncated,) = result.rows
    assert (truncated["input_ids"], truncated["labels"]) == (full["input_ids"][:-1], full["labels"][:-1])
    assert result.counts["truncated"] == 1
    first = next(index for index, label in enumerate(full["labels"]) if label != -100)
    too_long = tokenization.tokenize_conversations(tokenizer, [{"messages": messages}], first)
    assert (too_long.rows, too_long.dropped) == ([], [(0, TOO_LONG)])
    assert len(tokenization.tokenize_conversations(tokenizer, [{"messages": messages}], first + 1).rows) == 1
    assert count_tokens(full) == len(full["input_ids"])


# ---- where a turn ends


def test_the_stop_tokens_of_the_embedded_model(tokenizer):
    assert (
        templates.stop_token_ids(tokenizer)
        == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
        == [tokenizer.eos_token_id]
    )


@pytest.mark.parametrize("kind", OTHERS)
def test_the_stop_tokens_of_the_shipped_templates_are_the_tokenizers_own(kind):
    template, ends = OTHERS[kind]
    tokenizer = other_tokenizer(template, **ends)
    assert templates.stop_token_ids(tokenizer) == [tokenizer.eos_token_id]


def test_a_turn_may_end_with_another_token_than_the_text():
    """Llama 3 ends a turn with <|eot_id|> and a text with <|end_of_text|>: both stop generation."""
    tokenizer = other_tokenizer(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eot|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert templates.stop_token_ids(tokenizer) == [eot, tokenizer.eos_token_id]
    (tokenized,) = tokenization.tokenize_pairs(tokenizer, [pair_row(PROMPTS["one question"])], 1000).rows
    assert tokenized["chosen_ids"][-1] == eot


def test_a_template_that_never_stops_is_refused():
    tokenizer = other_tokenizer(None)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(
        DataError,
        match=r"model\.chat_template: it ends the assistant's turn with no special token.*eos_token",
    ):
        tokenization.tokenize_pairs(tokenizer, [pair_row(PROMPTS["one question"])], 1000)


# ---- TRL as the oracle


@pytest.mark.parametrize("limit", [30, 60, 1000])
def test_pairs_are_trls_up_to_the_stop_token(limit, tokenizer):
    """DPOTrainer prepares and drops the same rows.

    It keeps the template's last line break, and truncates later.
    """
    from datasets import Dataset
    from trl import DPOTrainer

    plain = [answer for answer in ANSWERS if not answer.startswith("\n")]
    rows = [pair_row(prompt, answer, "No.") for name, prompt in PROMPTS.items() for answer in plain]
    settings = SimpleNamespace(dataset_num_proc=None, max_length=limit, truncation_mode="keep_start")
    trl = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list(rows), tokenizer, settings, "train"
    )
    ours = tokenization.tokenize_pairs(tokenizer, rows, limit).rows
    assert len(ours) == len(trl)
    (line_break,) = tokenizer("\n")["input_ids"]
    for ours_row, trl_row in zip(ours, trl, strict=True):
        room = limit - len(ours_row["prompt_ids"])
        assert ours_row["prompt_ids"] == trl_row["prompt_ids"]
        for key in ("chosen_ids", "rejected_ids"):
            assert trl_row[key][-1] == line_break
            assert ours_row[key] == trl_row[key][:-1][:room]


# ---- which end a longer row loses


@pytest.mark.parametrize("limit", [12, 25, 40, 1000])
def test_a_prompt_loses_its_beginning_so_that_answers_fit(limit, any_tokenizer):
    """BOS stays, and half of the limit at least; the halves of a pair are cut as the pair is."""
    rows = [pair_row(prompt, "word " * (3 * index), "No") for index, prompt in enumerate(PROMPTS.values(), 1)]
    uncut = tokenization.tokenize_pairs(any_tokenizer, rows, 10_000).rows
    cut = tokenization.tokenize_pairs(any_tokenizer, rows, limit, Truncation.prompt)
    labeled = tokenization.tokenize_unpaired(any_tokenizer, as_labeled(rows), limit, Truncation.prompt)
    assert (cut.dropped, labeled.dropped) == ([], [])
    halves_of = list(zip(labeled.rows[::2], labeled.rows[1::2], strict=True))
    for row, whole, halves in zip(cut.rows, uncut, halves_of, strict=True):
        prompt, before = row["prompt_ids"], whole["prompt_ids"]
        head = int(before[0] == any_tokenizer.bos_token_id and len(prompt) < len(before))
        assert prompt == before[:head] + before[len(before) - len(prompt) + head :]
        longest = max(len(whole["chosen_ids"]), len(whole["rejected_ids"]))
        assert len(prompt) == min(len(before), max(limit - longest, limit // 2))
        for name, half in zip(("chosen", "rejected"), halves, strict=True):
            assert row[f"{name}_ids"] == whole[f"{name}_ids"][: limit - len(prompt)]
            assert (half["prompt_ids"], half["completion_ids"]) == (prompt, row[f"{name}_ids"])
    pairs = zip(cut.rows, uncut, strict=True)
    shortened = sum(len(row["prompt_ids"]) < len(whole["prompt_ids"]) for row, whole in pairs)
    assert cut.counts[SHORTENED] == shortened <= cut.counts["truncated"]


@pytest.mark.parametrize("chat", CHATS)
def test_of_a_longer_conversation_the_last_answer_stays(chat, any_tokenizer):
    """At every limit, with its labels; an answer that loses its beginning is not trained."""
    row = {"messages": CHATS[chat]}
    for whole in tokenization.tokenize_conversations(any_tokenizer, [row], 10_000).rows:
        ids, labels = whole["input_ids"], whole["labels"]
        answer = len(labels) - max(place for place, label in enumerate(labels) if label == -100) - 1
        head = int(ids[0] == any_tokenizer.bos_token_id)
        for limit in range(2 * answer, len(ids)):
            start = len(ids) - limit + head
            begun = labels[start:].index(-100) if labels[start - 1] != -100 != labels[start] else 0
            expected = [*labels[:head], *[-100] * begun, *labels[start + begun :]]
            cut = tokenization.tokenize_conversations(any_tokenizer, [row], limit, Truncation.prompt)
            made = [(each["input_ids"], each["labels"]) for each in cut.rows]
            assert ([*ids[:head], *ids[start:]], expected) in made
            assert cut.counts[SHORTENED] == cut.counts["truncated"] == 1
