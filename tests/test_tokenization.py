"""Token ids are those of the template's own text, split where the model begins to speak, and end where it must stop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from small_tokenizers import OTHERS, other_tokenizer, real_rows

from alignment_lab.config import Format
from alignment_lab.data import DataError, count_tokens, templates, tokenization

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


def rows_of(prompt, chosen="Yes.", rejected="No, and more."):
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def whole(tokenizer, messages) -> list[int]:
    """The ids of the template's whole text, up to its last stop token."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stops = set(templates.stop_token_ids(tokenizer))
    return ids[: max(place for place, token in enumerate(ids) if token in stops) + 1]


# ---- pairs


def by_hand(tokenizer, prompt, answer):
    """Prompt and answer ids from two whole texts, each rendered and tokenized alone."""
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    start, ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, text))
    behind = (
        ids[len(start) :]
        if ids[: len(start)] == start
        else tokenizer(text[len(before) :], add_special_tokens=False)["input_ids"]
    )
    stops = set(templates.stop_token_ids(tokenizer))
    return start, behind[: max(place for place, token in enumerate(behind) if token in stops) + 1]


@pytest.mark.parametrize("name", ["hh_harmless_1000.jsonl", "dpo_en_demo.json"])
def test_real_pairs_are_what_they_are_by_hand(name, any_tokenizer):
    rows = real_rows(name, Format.preference, 40)
    found, counts = tokenization.tokenize_pairs(any_tokenizer, rows, 100_000)
    assert (len(found), counts.total()) == (len(rows), 0)
    for row in found:
        for key in ("chosen", "rejected"):
            assert (row["prompt_ids"], row[f"{key}_ids"]) == by_hand(any_tokenizer, row["prompt"], row[key])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_and_answer_are_the_templates_whole_text(prompt, any_tokenizer):
    rows = [rows_of(PROMPTS[prompt], chosen, "No") for chosen in ANSWERS]
    found, counts = tokenization.tokenize_pairs(any_tokenizer, rows, 10_000)
    assert counts.total() == 0
    for row in found:
        assert row["prompt_ids"] == templates.encode_prompts(any_tokenizer, [row["prompt"]])[0]
        for key in ("chosen", "rejected"):
            assert any_tokenizer.decode(row["prompt_ids"] + row[f"{key}_ids"]) == any_tokenizer.decode(
                whole(any_tokenizer, row["prompt"] + row[key])
            )


def test_with_the_embedded_tokenizer_the_ids_are_the_whole_texts_own(tokenizer):
    """Its special token <|im_start|> and the line break behind `assistant` keep every answer but one from merging with the prompt."""
    rows = [
        rows_of(prompt, answer, "No")
        for prompt in PROMPTS.values()
        for answer in ANSWERS
        if not answer.startswith("\n")
    ]
    for row in tokenization.tokenize_pairs(tokenizer, rows, 10_000)[0]:
        for key in ("chosen", "rejected"):
            assert row["prompt_ids"] + row[f"{key}_ids"] == whole(tokenizer, row["prompt"] + row[key])


def test_every_answer_ends_with_a_stop_token_and_nothing_behind_it(any_tokenizer):
    rows = [rows_of(prompt, answer, "No") for prompt in PROMPTS.values() for answer in ANSWERS]
    stops = templates.stop_token_ids(any_tokenizer)
    for row in tokenization.tokenize_pairs(any_tokenizer, rows, 10_000)[0]:
        assert row["chosen_ids"][-1] in stops
        assert row["rejected_ids"][-1] in stops
        assert sum(token in stops for token in row["rejected_ids"]) == 1  # "No" holds none of its own


def test_no_prompt_begins_twice(any_tokenizer):
    for ids in templates.encode_prompts(any_tokenizer, list(PROMPTS.values())):
        assert ids[:1] != ids[1:2]
        if any_tokenizer.bos_token not in (None, any_tokenizer.eos_token):
            assert ids[0] == any_tokenizer.bos_token_id


def test_an_answer_that_would_merge_with_the_prompt_is_tokenized_as_it_is_generated(tokenizer):
    """ "\\n\\n" is one token, so the prompt's last line break would vanish into it; the model at generation sees the prompt's own ids."""
    row = rows_of(PROMPTS["one question"], "\n\nParis.", "No")
    (found,), _ = tokenization.tokenize_pairs(tokenizer, [row], 1000)
    ids = whole(tokenizer, row["prompt"] + row["chosen"])
    if ids[: len(found["prompt_ids"])] == found["prompt_ids"]:
        pytest.skip("this tokenizer does not merge them")
    assert found["prompt_ids"] == templates.encode_prompts(tokenizer, [row["prompt"]])[0]
    assert tokenizer.decode(found["chosen_ids"]) == "\n\nParis.<|im_end|>"


def test_batches_do_not_show(tokenizer, monkeypatch):
    rows = [rows_of(prompt, answer) for prompt in PROMPTS.values() for answer in ANSWERS[:3]]
    expected = (
        tokenization.tokenize_pairs(tokenizer, rows, 64),
        tokenization.tokenize_conversations(tokenizer, as_chats(rows), 64),
    )
    monkeypatch.setattr(tokenization, "BATCH_SIZE", 4)
    assert (
        tokenization.tokenize_pairs(tokenizer, rows, 64),
        tokenization.tokenize_conversations(tokenizer, as_chats(rows), 64),
    ) == expected


def as_chats(rows):
    return [{"messages": row["prompt"] + row["chosen"], "answer": ["x"]} for row in rows]


def test_other_columns_stay(tokenizer):
    row = {**rows_of(PROMPTS["one question"]), "answer": ["Paris"]}
    (found,), _ = tokenization.tokenize_pairs(tokenizer, [row], 1000)
    assert row.items() <= found.items()
    assert count_tokens(found) == len(found["prompt_ids"]) + len(found["chosen_ids"]) + len(
        found["rejected_ids"]
    )


def test_a_longer_answer_is_cut_at_its_end_and_counted_once(tokenizer):
    """The prompt is whole; each answer keeps its first `max_length - prompt` tokens. Both are too long: one row is counted."""
    row = rows_of(PROMPTS["one question"], "Paris. " * 50, "London. " * 50)
    (full,), _ = tokenization.tokenize_pairs(tokenizer, [row], 10_000)
    room = 7
    (cut,), counts = tokenization.tokenize_pairs(tokenizer, [row], len(full["prompt_ids"]) + room)
    assert cut["prompt_ids"] == full["prompt_ids"]
    assert (cut["chosen_ids"], cut["rejected_ids"]) == (
        full["chosen_ids"][:room],
        full["rejected_ids"][:room],
    )
    assert dict(counts) == {"truncated": 1}


@pytest.mark.parametrize(
    ("room", "expected"),
    [(0, {"the prompt fills data.max_length": 1}), (1, {"truncated": 1}), (100, {"truncated": 0})],
)
def test_a_prompt_that_leaves_no_room_drops_the_row(room, expected, tokenizer):
    row = rows_of(PROMPTS["one question"])
    length = len(templates.encode_prompts(tokenizer, [row["prompt"]])[0])
    found, counts = tokenization.tokenize_pairs(tokenizer, [row], length + room)
    assert (len(found), dict(counts)) == (int(room > 0), expected)


def test_dropped_rows_leave_their_neighbours_as_they_are(tokenizer):
    long = rows_of([{"role": "user", "content": "word " * 200}])
    rows = [rows_of(PROMPTS["one question"]), long, rows_of(PROMPTS["a system message"])]
    found, counts = tokenization.tokenize_pairs(tokenizer, rows, 100)
    assert found == tokenization.tokenize_pairs(tokenizer, [rows[0], rows[2]], 100)[0]
    assert counts["the prompt fills data.max_length"] == 1


# ---- labelled answers


def as_labelled(rows):
    """Pairs, split as formats.halves splits them; some answers here are blank, which it would refuse."""
    return [
        {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
        for row in rows
        for key in ("chosen", "rejected")
    ]


@pytest.mark.parametrize("limit", [20, 30, 1000])
def test_labelled_answers_are_those_of_the_pair(limit, tokenizer):
    """Every id, and every row that is dropped: both halves of a pair go together, and each that is cut counts."""
    rows = [rows_of(prompt, answer, "No") for prompt in PROMPTS.values() for answer in ANSWERS]
    pairs, lost = tokenization.tokenize_pairs(tokenizer, rows, limit)
    found, counts = tokenization.tokenize_unpaired(tokenizer, as_labelled(rows), limit)
    assert [row["label"] for row in found] == [True, False] * len(pairs)
    assert [row["prompt_ids"] for row in found] == [row["prompt_ids"] for row in pairs for _ in range(2)]
    assert [row["completion_ids"] for row in found] == [
        row[f"{key}_ids"] for row in pairs for key in ("chosen", "rejected")
    ]
    assert counts["the prompt fills data.max_length"] == 2 * lost["the prompt fills data.max_length"]
    assert lost["truncated"] <= counts["truncated"] <= 2 * lost["truncated"]


def test_a_labelled_answer_has_the_same_ids_whatever_stands_beside_it(tokenizer):
    rows = as_labelled([rows_of(prompt, answer, "No") for prompt in PROMPTS.values() for answer in ANSWERS])
    found, _ = tokenization.tokenize_unpaired(tokenizer, rows, 64)
    assert found == [one for row in rows for one in tokenization.tokenize_unpaired(tokenizer, [row], 64)[0]]
    assert all(
        count_tokens(row) == len(row["prompt_ids"]) + len(row["completion_ids"]) <= 64 for row in found
    )
    assert found[0].items() >= rows[0].items()


def test_real_labelled_answers_are_what_they_are_by_hand(tokenizer):
    for row in tokenization.tokenize_unpaired(
        tokenizer, real_rows("kto_en_demo.json", Format.unpaired, 40), 100_000
    )[0]:
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
    """What is labelled reads, turn by turn, as what the assistant said and the stop token."""
    messages = CHATS[chat]
    (found,), counts = tokenization.tokenize_conversations(any_tokenizer, [{"messages": messages}], 10_000)
    assert counts.total() == 0
    assert found["input_ids"] == whole(any_tokenizer, messages)
    assert len(found["labels"]) == len(found["input_ids"])
    assert all(
        label in (-100, token) for label, token in zip(found["labels"], found["input_ids"], strict=True)
    )
    spans: list[list[int]] = []
    for before, label in zip([-100, *found["labels"]], found["labels"], strict=False):
        if label != -100:
            spans = [*spans, []] if before == -100 else spans
            spans[-1].append(label)
    stop = templates.stop_token_ids(any_tokenizer)[0]
    assert [span[-1] for span in spans] == [stop] * len(spans)
    texts = [any_tokenizer.decode(span[:-1]).removesuffix("<|im_end|>") for span in spans]
    assert texts == [message["content"] for message in messages if message["role"] == "assistant"]


def test_a_turn_that_opens_the_conversation_answers_nobody(any_tokenizer):
    """It is seen and not trained, as a system message is."""
    opening = [
        {"role": "assistant", "content": "Welcome."},
        *PROMPTS["one question"],
        {"role": "assistant", "content": "Paris."},
    ]
    (found,), _ = tokenization.tokenize_conversations(any_tokenizer, [{"messages": opening}], 1000)
    assert found["input_ids"] == whole(any_tokenizer, opening)
    prompt, answer = by_hand(any_tokenizer, opening[:-1], opening[-1:])
    assert found["labels"] == [-100] * len(prompt) + answer


def test_a_conversation_is_cut_and_counted(tokenizer):
    messages = CHATS["several turns"]
    (full,), _ = tokenization.tokenize_conversations(tokenizer, [{"messages": messages}], 1000)
    (cut,), counts = tokenization.tokenize_conversations(
        tokenizer, [{"messages": messages}], len(full["input_ids"]) - 1
    )
    assert (cut["input_ids"], cut["labels"]) == (full["input_ids"][:-1], full["labels"][:-1])
    assert dict(counts) == {"truncated": 1}
    first = next(place for place, label in enumerate(full["labels"]) if label != -100)
    assert tokenization.tokenize_conversations(tokenizer, [{"messages": messages}], first) == (
        [],
        {"the prompt fills data.max_length": 1},
    )
    assert len(tokenization.tokenize_conversations(tokenizer, [{"messages": messages}], first + 1)[0]) == 1
    assert count_tokens(full) == len(full["input_ids"])


def test_a_template_that_rewrites_earlier_turns_trains_the_last_answer_exactly():
    """It leaves the first answer's thoughts out once a second question follows, as Qwen3's does."""
    tokenizer = other_tokenizer(None)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{{ m.content if loop.last else m.content.split('#')[-1] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    turns = [("user", "a"), ("assistant", "think#b"), ("user", "c"), ("assistant", "think#d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (found,), _ = tokenization.tokenize_conversations(tokenizer, [{"messages": messages}], 1000)
    assert found["input_ids"] == whole(tokenizer, messages)
    assert tokenizer.decode([label for label in found["labels"] if label != -100]) == "think#d</s>"


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
    found = other_tokenizer(template, **ends)
    assert templates.stop_token_ids(found) == [found.eos_token_id]


def test_a_turn_may_end_with_another_token_than_the_text():
    """Llama 3 ends a turn with <|eot_id|> and a text with <|end_of_text|>: both end an answer, the turn's first."""
    tokenizer = other_tokenizer(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eot|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert templates.stop_token_ids(tokenizer) == [eot, tokenizer.eos_token_id]
    (found,), _ = tokenization.tokenize_pairs(tokenizer, [rows_of(PROMPTS["one question"])], 1000)
    assert found["chosen_ids"][-1] == eot


def test_a_template_that_never_stops_is_refused():
    tokenizer = other_tokenizer(None)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(
        DataError,
        match=r"model\.chat_template: it ends the assistant's turn with no special token.*eos_token",
    ):
        tokenization.tokenize_pairs(tokenizer, [rows_of(PROMPTS["one question"])], 1000)


def test_a_template_whose_prompt_does_not_begin_the_whole_is_refused():
    tokenizer = other_tokenizer(None)
    tokenizer.chat_template = (
        "{{ '!' if add_generation_prompt }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    with pytest.raises(
        DataError,
        match=r"model\.chat_template: a prompt with its answer does not begin with the prompt alone",
    ):
        tokenization.tokenize_pairs(tokenizer, [rows_of(PROMPTS["one question"])], 1000)


# ---- TRL as the oracle


@pytest.mark.parametrize("limit", [30, 60, 1000])
def test_pairs_are_trls_up_to_the_stop_token(limit, tokenizer):
    """DPOTrainer's own preparation of the same rows keeps the template's last line break, and cuts later; it drops the same rows."""
    from datasets import Dataset
    from trl import DPOTrainer

    plain = [answer for answer in ANSWERS if not answer.startswith("\n")]
    rows = [rows_of(prompt, answer, "No.") for name, prompt in PROMPTS.items() for answer in plain]
    settings = SimpleNamespace(dataset_num_proc=None, max_length=limit, truncation_mode="keep_start")
    trl = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list(rows), tokenizer, settings, "train"
    )
    ours, _ = tokenization.tokenize_pairs(tokenizer, rows, limit)
    assert len(ours) == len(trl)
    (line_break,) = tokenizer("\n")["input_ids"]
    for mine, theirs in zip(ours, trl, strict=True):
        room = limit - len(mine["prompt_ids"])
        assert mine["prompt_ids"] == theirs["prompt_ids"]
        for key in ("chosen_ids", "rejected_ids"):
            assert theirs[key][-1] == line_break
            assert mine[key] == theirs[key][:-1][:room]
