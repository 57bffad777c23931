"""Token ids are those of the template's own text, split where the model begins to speak, and end where it must stop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from alignment_lab.data import DataError, size, tokenise
from alignment_lab.model import chat_template

PROMPTS = {
    "one question": [{"role": "user", "content": "What is the capital of France?"}],
    "a system message": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    "several turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "2 + 2 ="},
    ],
    "another script": [{"role": "user", "content": "é模型 \U0001f642\n\n"}],
    "words that look like the template": [{"role": "user", "content": "<|im_start|>assistant\nsay <|im_end|> now"}],
}
ANSWERS = ["Paris.", " a leading space", "trailing\n\n", "\n", "4", "<b>é模</b>\n```\ncode\n```", "stop <|im_end|> stop"]


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
    stops = set(tokenise.stop_ids(tokenizer))
    return ids[: max(place for place, token in enumerate(ids) if token in stops) + 1]


# ---- other tokenizers: small ones of each family, with the templates that the lab ships


def other_tokenizer(template: str | None, *, bos: str | None = "<s>", eos: str = "</s>"):
    """Byte-level BPE that was trained on three sentences, so that some letters merge and most do not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<unk>", *([bos] if bos else []), eos]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(["<|user|>\nWhat is it?\n<|assistant|>\nIt is Paris.\n", "<|im_start|>user\nHello<|im_end|>\n"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template and chat_template(template)
    return tokenizer


OTHERS = {
    "zephyr": ("zephyr", {}),
    "zephyr without BOS": ("zephyr", {"bos": None}),
    "zephyr, one token for both ends (GPT-2)": ("zephyr", {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}),
    "chatml with the template's stop": ("chatml", {"bos": "<|im_start|>", "eos": "<|im_end|>"}),
    "chatml with a stop of its own": ("chatml", {}),
}


@pytest.fixture(scope="module", params=["embedded", *OTHERS])
def any_tokenizer(request):
    if request.param == "embedded":
        return request.getfixturevalue("tokenizer")
    template, ends = OTHERS[request.param]
    return other_tokenizer(template, **ends)


# ---- pairs


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_and_answer_are_the_templates_whole_text(prompt, any_tokenizer):
    rows = [rows_of(PROMPTS[prompt], chosen, "No") for chosen in ANSWERS]
    found, counts = tokenise.pairs(any_tokenizer, rows, 10_000)
    assert counts.total() == 0
    for row in found:
        assert row["prompt_ids"] == tokenise.prompt_ids(any_tokenizer, [row["prompt"]])[0]
        for key in ("chosen", "rejected"):
            assert any_tokenizer.decode(row["prompt_ids"] + row[f"{key}_ids"]) == any_tokenizer.decode(
                whole(any_tokenizer, row["prompt"] + row[key])
            )


def test_with_the_embedded_tokenizer_the_ids_are_the_whole_texts_own(tokenizer):
    """Its special token <|im_start|> and the line break behind `assistant` keep every answer but one from merging with the prompt."""
    rows = [rows_of(prompt, answer, "No") for prompt in PROMPTS.values() for answer in ANSWERS if not answer.startswith("\n")]
    for row in tokenise.pairs(tokenizer, rows, 10_000)[0]:
        for key in ("chosen", "rejected"):
            assert row["prompt_ids"] + row[f"{key}_ids"] == whole(tokenizer, row["prompt"] + row[key])


def test_every_answer_ends_with_a_stop_token_and_nothing_behind_it(any_tokenizer):
    rows = [rows_of(prompt, answer, "No") for prompt in PROMPTS.values() for answer in ANSWERS]
    stops = tokenise.stop_ids(any_tokenizer)
    for row in tokenise.pairs(any_tokenizer, rows, 10_000)[0]:
        assert row["chosen_ids"][-1] in stops
        assert row["rejected_ids"][-1] in stops
        assert sum(token in stops for token in row["rejected_ids"]) == 1  # "No" holds none of its own


def test_no_prompt_begins_twice(any_tokenizer):
    for ids in tokenise.prompt_ids(any_tokenizer, list(PROMPTS.values())):
        assert ids[:1] != ids[1:2]
        if any_tokenizer.bos_token not in (None, any_tokenizer.eos_token):
            assert ids[0] == any_tokenizer.bos_token_id


def test_an_answer_that_would_merge_with_the_prompt_is_tokenised_as_it_is_generated(tokenizer):
    """ "\\n\\n" is one token, so the prompt's last line break would vanish into it; the model at generation sees the prompt's own ids."""
    row = rows_of(PROMPTS["one question"], "\n\nParis.", "No")
    (found,), _ = tokenise.pairs(tokenizer, [row], 1000)
    ids = whole(tokenizer, row["prompt"] + row["chosen"])
    if ids[: len(found["prompt_ids"])] == found["prompt_ids"]:
        pytest.skip("this tokenizer does not merge them")
    assert found["prompt_ids"] == tokenise.prompt_ids(tokenizer, [row["prompt"]])[0]
    assert tokenizer.decode(found["chosen_ids"]) == "\n\nParis.<|im_end|>"


def test_batches_do_not_show(tokenizer, monkeypatch):
    rows = [rows_of(prompt, answer) for prompt in PROMPTS.values() for answer in ANSWERS[:3]]
    expected = tokenise.pairs(tokenizer, rows, 64), tokenise.conversations(tokenizer, as_chats(rows), 64)
    monkeypatch.setattr(tokenise, "BATCH", 4)
    assert (tokenise.pairs(tokenizer, rows, 64), tokenise.conversations(tokenizer, as_chats(rows), 64)) == expected


def as_chats(rows):
    return [{"messages": row["prompt"] + row["chosen"], "answer": ["x"]} for row in rows]


def test_other_columns_stay(tokenizer):
    row = {**rows_of(PROMPTS["one question"]), "answer": ["Paris"]}
    (found,), _ = tokenise.pairs(tokenizer, [row], 1000)
    assert row.items() <= found.items()
    assert size(found) == len(found["prompt_ids"]) + len(found["chosen_ids"]) + len(found["rejected_ids"])


def test_a_longer_answer_is_cut_at_its_end_and_counted_once(tokenizer):
    """The prompt is whole; each answer keeps its first `max_length - prompt` tokens. Both are too long: one row is counted."""
    row = rows_of(PROMPTS["one question"], "Paris. " * 50, "London. " * 50)
    (full,), _ = tokenise.pairs(tokenizer, [row], 10_000)
    room = 7
    (cut,), counts = tokenise.pairs(tokenizer, [row], len(full["prompt_ids"]) + room)
    assert cut["prompt_ids"] == full["prompt_ids"]
    assert (cut["chosen_ids"], cut["rejected_ids"]) == (full["chosen_ids"][:room], full["rejected_ids"][:room])
    assert dict(counts) == {"truncated": 1}


@pytest.mark.parametrize(
    ("room", "expected"), [(0, {"the prompt fills data.max_length": 1}), (1, {"truncated": 1}), (100, {"truncated": 0})]
)
def test_a_prompt_that_leaves_no_room_drops_the_row(room, expected, tokenizer):
    row = rows_of(PROMPTS["one question"])
    length = len(tokenise.prompt_ids(tokenizer, [row["prompt"]])[0])
    found, counts = tokenise.pairs(tokenizer, [row], length + room)
    assert (len(found), dict(counts)) == (int(room > 0), expected)


def test_dropped_rows_leave_their_neighbours_as_they_are(tokenizer):
    long = rows_of([{"role": "user", "content": "word " * 200}])
    rows = [rows_of(PROMPTS["one question"]), long, rows_of(PROMPTS["a system message"])]
    found, counts = tokenise.pairs(tokenizer, rows, 100)
    assert found == tokenise.pairs(tokenizer, [rows[0], rows[2]], 100)[0]
    assert counts["the prompt fills data.max_length"] == 1


# ---- conversations

CHATS = {
    "one turn": PROMPTS["one question"] + [{"role": "assistant", "content": "Paris."}],
    "several turns": PROMPTS["several turns"] + [{"role": "assistant", "content": "4."}],
    "a system message": PROMPTS["a system message"] + [{"role": "assistant", "content": "Hi."}],
    "two answers in a row": [*PROMPTS["one question"], {"role": "assistant", "content": "Hm."}, {"role": "assistant", "content": "Paris."}],
}


@pytest.mark.parametrize("chat", CHATS)
def test_labels_cover_the_assistants_turns_with_their_stop_and_nothing_else(chat, any_tokenizer):
    """What is labelled reads, turn by turn, as what the assistant said and the stop token."""
    messages = CHATS[chat]
    (found,), counts = tokenise.conversations(any_tokenizer, [{"messages": messages}], 10_000)
    assert counts.total() == 0
    assert found["input_ids"] == whole(any_tokenizer, messages)
    assert len(found["labels"]) == len(found["input_ids"])
    assert all(label in (-100, token) for label, token in zip(found["labels"], found["input_ids"], strict=True))
    spans: list[list[int]] = []
    for before, label in zip([-100, *found["labels"]], found["labels"], strict=False):
        if label != -100:
            spans = [*spans, []] if before == -100 else spans
            spans[-1].append(label)
    stop = tokenise.stop_ids(any_tokenizer)[0]
    assert [span[-1] for span in spans] == [stop] * len(spans)
    texts = [any_tokenizer.decode(span[:-1]).removesuffix("<|im_end|>") for span in spans]
    assert texts == [message["content"] for message in messages if message["role"] == "assistant"]


def test_a_conversation_is_cut_and_counted(tokenizer):
    messages = CHATS["several turns"]
    (full,), _ = tokenise.conversations(tokenizer, [{"messages": messages}], 1000)
    (cut,), counts = tokenise.conversations(tokenizer, [{"messages": messages}], len(full["input_ids"]) - 1)
    assert (cut["input_ids"], cut["labels"]) == (full["input_ids"][:-1], full["labels"][:-1])
    assert dict(counts) == {"truncated": 1}
    first = next(place for place, label in enumerate(full["labels"]) if label != -100)
    assert tokenise.conversations(tokenizer, [{"messages": messages}], first) == ([], {"the prompt fills data.max_length": 1})
    assert len(tokenise.conversations(tokenizer, [{"messages": messages}], first + 1)[0]) == 1
    assert size(full) == len(full["input_ids"])


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
    (found,), _ = tokenise.conversations(tokenizer, [{"messages": messages}], 1000)
    assert found["input_ids"] == whole(tokenizer, messages)
    assert tokenizer.decode([label for label in found["labels"] if label != -100]) == "think#d</s>"


# ---- where a turn ends


def test_the_stop_tokens_of_the_embedded_model(tokenizer):
    assert tokenise.stop_ids(tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")] == [tokenizer.eos_token_id]


@pytest.mark.parametrize("kind", OTHERS)
def test_the_stop_tokens_of_the_shipped_templates_are_the_tokenizers_own(kind):
    template, ends = OTHERS[kind]
    found = other_tokenizer(template, **ends)
    assert tokenise.stop_ids(found) == [found.eos_token_id]


def test_a_turn_may_end_with_another_token_than_the_text():
    """Llama 3 ends a turn with <|eot_id|> and a text with <|end_of_text|>: both end an answer, the turn's first."""
    tokenizer = other_tokenizer(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eot|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    eot = tokenizer.convert_tokens_to_ids("<|eot|>")
    assert tokenise.stop_ids(tokenizer) == [eot, tokenizer.eos_token_id]
    (found,), _ = tokenise.pairs(tokenizer, [rows_of(PROMPTS["one question"])], 1000)
    assert found["chosen_ids"][-1] == eot


def test_a_template_that_never_stops_is_refused():
    tokenizer = other_tokenizer(None)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(DataError, match=r"model\.chat_template: it ends the assistant's turn with no special token.*eos_token"):
        tokenise.pairs(tokenizer, [rows_of(PROMPTS["one question"])], 1000)


def test_a_template_whose_prompt_does_not_begin_the_whole_is_refused():
    tokenizer = other_tokenizer(None)
    tokenizer.chat_template = "{{ '!' if add_generation_prompt }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    with pytest.raises(DataError, match=r"model\.chat_template: a prompt with its answer does not begin with the prompt alone"):
        tokenise.pairs(tokenizer, [rows_of(PROMPTS["one question"])], 1000)


# ---- TRL as the oracle


@pytest.mark.parametrize("limit", [30, 60, 1000])
def test_pairs_are_trls_up_to_the_stop_token(limit, tokenizer):
    """DPOTrainer's own preparation of the same rows keeps the template's last line break, and cuts later; it drops the same rows."""
    from datasets import Dataset
    from trl import DPOTrainer

    plain = [answer for answer in ANSWERS if not answer.startswith("\n")]
    rows = [rows_of(prompt, answer, "No.") for name, prompt in PROMPTS.items() for answer in plain]
    settings = SimpleNamespace(dataset_num_proc=None, max_length=limit, truncation_mode="keep_start")
    trl = DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list(rows), tokenizer, settings, "train")
    ours, _ = tokenise.pairs(tokenizer, rows, limit)
    assert len(ours) == len(trl)
    (line_break,) = tokenizer("\n")["input_ids"]
    for mine, theirs in zip(ours, trl, strict=True):
        room = limit - len(mine["prompt_ids"])
        assert mine["prompt_ids"] == theirs["prompt_ids"]
        for key in ("chosen_ids", "rejected_ids"):
            assert theirs[key][-1] == line_break
            assert mine[key] == theirs[key][:-1][:room]
