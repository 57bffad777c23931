"""Conversations under the templates of the model families: every answer is trained exactly as it would be
generated, in the fewest sequences; TRL's assistant masks are the oracle where it can make one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import other_tokenizer

from alignment_lab.config import TEMPLATES
from alignment_lab.data import DataError, templates, tokenization
from alignment_lab.data.reasons import BadRow, Reason


@dataclass(frozen=True)
class Family:
    """A template, the special tokens that it writes, and what is peculiar to it."""

    template: str  # a file of trl's, or a shipped name
    stop: str
    special: tuple[str, ...] = ()
    bos: str | None = "<s>"
    eos: str = "</s>"
    system: bool = True
    tools: bool = False
    rewrites: bool = False  # earlier turns, once another follows
    thinks: bool = False  # the prompt opens the answer's thoughts


IM = ("<|im_start|>", "<|im_end|>")
R1, R1_END = ("<｜User｜>", "<｜Assistant｜>"), "<｜end▁of▁sentence｜>"
FAMILIES = {
    "chatml": Family("chatml", "</s>", IM),
    "zephyr": Family("zephyr", "</s>"),
    "llama3": Family(
        "llama3.jinja", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    ),
    "gemma": Family("gemma.jinja", "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"), system=False),
    "phi3": Family("phi3.jinja", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "qwen3": Family("qwen3.jinja", "<|im_end|>", IM, None, "<|im_end|>", tools=True, rewrites=True),
    "deepseek_r1_distill": Family(
        "deepseek_r1_distill.jinja", R1_END, R1, eos=R1_END, rewrites=True, thinks=True
    ),
}
SENTENCES = [
    "It is Paris.",
    " two  blanks",
    "é模型\n\nand a line",
    "\n\nIt begins with a blank line.",
    "4",
    "x\n",
]


def family_tokenizer(name: str, *, training: bool = False) -> Any:
    family = FAMILIES[name]
    tokenizer = other_tokenizer(None, bos=family.bos, eos=family.eos)
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    if family.template in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[family.template].read_text(encoding="utf-8")
    else:
        trl = pytest.importorskip("trl")
        file = family.template.replace(".jinja", "_training.jinja") if training else family.template
        tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / file).read_text("utf-8")
    return tokenizer


@pytest.fixture(scope="module", params=["embedded", *FAMILIES])
def family(request) -> tuple[Family, Any]:
    if request.param == "embedded":
        return Family("", "<|im_end|>"), request.getfixturevalue("tokenizer")
    return FAMILIES[request.param], family_tokenizer(request.param)


def conversation(turns: int, *, system: bool, thinks: bool) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": "Be brief."}] if system else []
    for turn in range(turns):
        answer = SENTENCES[turn % len(SENTENCES)]
        messages += [
            {"role": "user", "content": f"What is it, {turn}?"},
            {
                "role": "assistant",
                "content": f"<think>\nHm, {turn}.\n</think>\n\n{answer}" if thinks else answer,
            },
        ]
    return messages


TOOLS = [{"type": "function", "function": {"name": "get_tide", "description": "d", "parameters": {}}}]


def answers_of(sequences: list[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """(the ids before, the labels) of every answer in token rows; an answer ends where its labels do."""
    answers = []
    for row in sequences:
        ids, labels = row["input_ids"], row["labels"]
        assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
        starts = [i for i, label in enumerate(labels) if label != -100 and (i == 0 or labels[i - 1] == -100)]
        for start in starts:
            end = next((i for i in range(start, len(ids)) if labels[i] == -100), len(ids))
            answers.append((ids[:start], labels[start:end]))
    return answers


def written_answer(family: Family, tokenizer: Any, row: dict[str, Any], index: int) -> str:
    """What the template writes of an answer after its prompt, up to and with the stop."""
    messages, extras = row["messages"], {"tools": row["tools"]} if "tools" in row else {}
    if family.thinks:
        return messages[index]["content"].removeprefix("<think>\n") + family.stop
    prompt = tokenizer.apply_chat_template(
        messages[:index], tokenize=False, add_generation_prompt=True, **extras
    )
    whole = tokenizer.apply_chat_template(messages[: index + 1], tokenize=False, **extras)
    assert whole.startswith(prompt)
    after = whole[len(prompt) :]
    return after[: after.index(family.stop) + len(family.stop)]


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("system", [False, True])
def test_every_answer_is_trained_as_it_would_be_generated(system, tools, family):
    """Conversations of 1 to 6 turns: the ids before an answer are the prompt's, its labels what follows."""
    kind, tokenizer = family
    rows = [
        {
            "messages": conversation(turns, system=system, thinks=kind.thinks),
            **({"tools": TOOLS} if tools else {}),
        }
        for turns in range(1, 7)
    ]
    tokenized = tokenization.tokenize_conversations(tokenizer, rows, 10_000)
    if (tools and not kind.tools) or (system and not kind.system):
        words = (
            "System role not supported" if system and not kind.system else "does not write the row's `tools`"
        )
        assert [index for index, _ in tokenized.dropped] == list(range(6)) and not tokenized.rows
        assert all(
            bad.reason is Reason.template_refuses and words in str(bad) for _, bad in tokenized.dropped
        )
        return
    assert not tokenized.dropped
    assert tokenized.counts["answers"] == tokenized.counts["answers trained"] == 21
    for number, row in enumerate(rows):
        messages = row["messages"]
        indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        expected = [
            (
                templates.encode_prompts(tokenizer, [{**row, "prompt": messages[:index]}])[0],
                written_answer(kind, tokenizer, row, index),
            )
            for index in indices
        ]
        own = [
            sequence
            for sequence, source in zip(tokenized.rows, tokenized.indices, strict=True)
            if source == number
        ]
        found = answers_of(own)
        assert [(before, tokenizer.decode(labels)) for before, labels in found] == expected
        merging = sum(re.match(r"\n", SENTENCES[turn]) is not None for turn in range(number))  # see below
        assert len(own) == len(indices) if kind.rewrites else len(own) <= 1 + merging


MASKED = [name for name, family in FAMILIES.items() if family.template.endswith(".jinja")]


@pytest.mark.parametrize("name", MASKED)
def test_ids_and_labels_are_those_of_trls_training_templates(name):
    """TRL also trains what follows the stop (a line break, Phi-3's end of the text) and DeepSeek's header."""
    tokenizer = family_tokenizer(name, training=True)
    kind = FAMILIES[name]
    for turns in range(1, 7):
        messages = conversation(turns, system=kind.system, thinks=kind.thinks)
        messages = [{**message, "content": message["content"].strip()} for message in messages]
        theirs = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        (ours,) = tokenization.tokenize_conversations(tokenizer, [{"messages": messages}], 10_000).rows
        length = len(ours["input_ids"])
        assert theirs["input_ids"][:length] == ours["input_ids"]
        trained = [label != -100 for label in ours["labels"]] + [False] * (len(theirs["input_ids"]) - length)
        masks = list(zip(theirs["input_ids"], theirs["assistant_masks"], trained, strict=True))
        assert all(theirs_too for _, theirs_too, ours_too in masks if ours_too)
        only_theirs = tokenizer.decode([token for token, mask, is_ours in masks if mask and not is_ours])
        allowed = {"gemma": "\n", "qwen3": "\n", "phi3": "\n</s>", "deepseek_r1_distill": R1[1] + "<think>\n"}
        assert set(only_theirs) <= set(allowed.get(name, ""))


# ---- what a template does with a row that is not made for it


def chat(*contents: str) -> list[dict[str, Any]]:
    return [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(contents)
    ]


ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FAILING = ALTERNATE.replace("{{ m.content }}", "{{ m.mood.name if m.content == 'odd' else m.content }}")
CONCATENATING = ALTERNATE.replace(
    "{{ m.content }}", "{{ 1 + m.content if m.content == 'odd' else m.content }}"
)


@pytest.mark.parametrize(
    ("template", "odd", "words"),
    [
        (ALTERNATE, [*chat("a", "b"), {"role": "assistant", "content": "c"}], "Roles must alternate"),
        (ALTERNATE, [{"role": "tool", "content": "9"}, *chat("a", "b")], "Roles must alternate"),
        (FAILING, chat("odd", "b"), "has no attribute 'mood'"),
        (CONCATENATING, chat("odd", "b"), "unsupported operand"),
    ],
)
def test_a_row_that_the_template_refuses_is_left_out_with_its_words(template, odd, words):
    tokenizer = other_tokenizer(None)
    tokenizer.chat_template = template
    good = {"messages": chat("a", "b")}
    tokenized = tokenization.tokenize_conversations(tokenizer, [good, {"messages": odd}, good], 100)
    assert tokenized.indices == [0, 2]
    ((index, bad),) = tokenized.dropped
    assert (index, bad.reason) == (1, Reason.template_refuses)
    assert words in str(bad) and "\n" not in str(bad)
    if odd[-2]["role"] == "assistant":  # of a pair it is a turn to go on in
        return
    pair = {"prompt": odd[:-1], "chosen": odd[-1:], "rejected": chat("a", "c")[1:]}
    assert tokenization.tokenize_pairs(tokenizer, [pair], 100).dropped == [(0, bad)]
    labeled = {"prompt": odd[:-1], "completion": odd[-1:], "label": True}
    assert tokenization.tokenize_unpaired(tokenizer, [labeled], 100).dropped == [(0, bad)]


def test_a_template_that_cannot_be_read_is_one_sentence():
    tokenizer = other_tokenizer(None)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | shout }}{% endfor %}"
    with pytest.raises(DataError, match=r"model\.chat_template: line 1 cannot be read: .*shout"):
        tokenization.tokenize_conversations(tokenizer, [{"messages": chat("a", "b")}], 100)


def test_an_answer_without_thoughts_is_refused_where_the_prompt_opens_them():
    tokenizer = family_tokenizer("deepseek_r1_distill")
    thought = [*chat("a"), {"role": "assistant", "content": "b", "reasoning_content": "Hm."}]
    tokenized = tokenization.tokenize_conversations(
        tokenizer, [{"messages": chat("a", "b")}, {"messages": thought}], 1000
    )
    ((index, bad),) = tokenized.dropped
    assert index == 0 and "begins the answer with '<think>\\n' at generation" in str(bad)
    ((_, labels),) = answers_of(tokenized.rows)
    assert tokenizer.decode(labels) == f"Hm.\n</think>\n\nb{R1_END}"


def test_a_prompt_that_its_answer_rewrites_is_refused():
    """Two answers in a row, under a template that writes thoughts into the last turn."""
    tokenizer = family_tokenizer("qwen3")
    two = [*chat("a", "b"), {"role": "assistant", "content": "c"}]
    tokenized = tokenization.tokenize_conversations(tokenizer, [{"messages": two}], 1000)
    ((_, bad),) = tokenized.dropped
    assert bad.reason is Reason.template_refuses and "otherwise once the answer follows" in str(bad)


# ---- what a row says beside the text of its messages


def test_tools_calls_thoughts_and_arguments_reach_a_template_that_knows_them():
    tokenizer = family_tokenizer("qwen3")
    call = {"type": "function", "function": {"name": "get_tide", "arguments": {"place": "Brest"}}}
    messages = [
        *chat("When is high tide?"),
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "I must look."},
        {"role": "tool", "content": '{"time": "9:40"}', "name": "get_tide"},
        {"role": "assistant", "content": "At 9:40."},
    ]
    row = {"messages": messages, "tools": TOOLS, "chat_template_kwargs": {"enable_thinking": True}}
    tokenized = tokenization.tokenize_conversations(tokenizer, [{"messages": chat("a", "b")}, row], 1000)
    assert not tokenized.dropped
    _, (before, calls), (context, final) = answers_of(tokenized.rows)
    assert '"name": "get_tide"' in tokenizer.decode(before)
    assert "I must look." in tokenizer.decode(calls) and '{"place": "Brest"}' in tokenizer.decode(calls)
    assert '{"time": "9:40"}' in tokenizer.decode(context)
    assert tokenizer.decode(final).endswith("At 9:40.<|im_end|>")
    quiet = {"messages": chat("a", "b"), "chat_template_kwargs": {"enable_thinking": False}}
    ((before, labels),) = answers_of(tokenization.tokenize_conversations(tokenizer, [quiet], 1000).rows)
    assert tokenizer.decode(before).endswith("</think>\n\n") and tokenizer.decode(labels) == "b<|im_end|>"


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        ({"tools": TOOLS}, "the row's `tools`"),
        ({"tool_calls": [{"function": {"name": "get_tide", "arguments": {}}}]}, "the answer's `tool_calls`"),
        ({"reasoning_content": "Hm."}, "the answer's thoughts (`reasoning_content`, `thinking`)"),
        ({"role": "tool"}, "the tool's message"),
    ],
)
def test_what_a_template_does_not_write_is_said(change, left_out):
    tokenizer = other_tokenizer(None)
    tokenizer.chat_template = (
        "{% for m in messages if m.role != 'tool' %}<|{{ m.role }}|>{{ m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    question, answer = chat("What?", "This.")
    row: dict[str, Any] = {"messages": [question, answer]}
    if "tools" in change:
        row |= change
    elif "role" in change:
        row["messages"] = [question, {"content": "9:40", **change}, answer]
    else:
        row["messages"] = [question, {**answer, **change}]
    ((_, bad),) = tokenization.tokenize_conversations(tokenizer, [row], 1000).dropped
    assert bad.reason is Reason.template_refuses
    assert f"the chat template does not write {left_out}; choose" in str(bad)


def test_an_argument_that_is_none_of_the_templates_is_refused(tokenizer):
    row = {"messages": chat("a", "b"), "chat_template_kwargs": {"tokenize": True}}
    ((_, bad),) = tokenization.tokenize_conversations(tokenizer, [row], 1000).dropped
    assert bad == BadRow(
        Reason.bad_kwargs, "`chat_template_kwargs` sets tokenize, which is no argument of the template"
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", ["prompts begin without <s>, which the tokenizer begins every other text with"]),
        ("{{ bos_token }}", []),
        ("{{ bos_token }}{{ bos_token }}", ["prompts begin with <s> twice"]),
    ],
)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_prompt_has_one_bos_where_the_tokenizer_adds_one_and_arguments_are_read(adds_bos, written, said):
    from tokenizers import processors

    tokenizer = other_tokenizer("zephyr")
    if adds_bos:
        bos = ("<s>", tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A", special_tokens=[bos]
        )
    plain = tokenizer.chat_template.replace("{{ bos_token }}", "").replace("{{- bos_token }}", "")
    tokenizer.chat_template = written + "{% if loud %}!{% endif %}" + plain
    rows = [
        {"messages": chat("a", "b", "c", "d"), "chat_template_kwargs": {name: False}}
        for name in ("loud", "lou")
    ]
    counts = tokenization.tokenize_conversations(tokenizer, rows, 1000).counts
    found = sorted(what.split(":")[0] for what, count in counts.items() if what.startswith("prompts begin"))
    assert found == (said if adds_bos else [])
    assert all(counts[what] == 2 for what in counts if what.startswith("prompts begin"))
    unread = "prompts are given lou by `chat_template_kwargs` and the chat template does not read it"
    assert [what for what in counts if "`chat_template_kwargs`" in what] == [unread] and counts[unread] == 1


# ---- open turns, context, stops


PLAIN = [
    "embedded",
    *(name for name, kind in FAMILIES.items() if not kind.thinks),
]  # take answers as they are


@pytest.mark.parametrize("family", PLAIN, indirect=True)
def test_an_answer_goes_on_in_the_turn_that_its_prompt_begins(family):
    """For pairs, labeled answers and conversations alike; generation goes on there too."""
    kind, tokenizer = family
    prompt = chat("What is 6 * 7?", "The answer is")
    answer = [{"role": "assistant", "content": " 42."}]
    pair = {"prompt": prompt, "chosen": answer, "rejected": [{"role": "assistant", "content": " 41."}]}
    (tokens,) = tokenization.tokenize_pairs(tokenizer, [pair], 1000).rows
    assert templates.encode_prompts(tokenizer, [pair]) == [tokens["prompt_ids"]]
    assert tokenizer.decode(tokens["prompt_ids"]).endswith("The answer is")
    end = kind.stop if kind.template != "chatml" else "<|im_end|></s>"
    assert tokenizer.decode(tokens["chosen_ids"]) == f" 42.{end}"
    labeled = {"prompt": prompt, "completion": answer, "label": True}
    (unpaired,) = tokenization.tokenize_unpaired(tokenizer, [labeled], 1000).rows
    begun = {"role": "assistant", "content": "The answer is 42.", "prefix": "The answer is"}
    (spoken,) = tokenization.tokenize_conversations(tokenizer, [{"messages": [prompt[0], begun]}], 1000).rows
    assert unpaired["prompt_ids"] + unpaired["completion_ids"] == spoken["input_ids"]
    assert answers_of([spoken]) == [(tokens["prompt_ids"], tokens["chosen_ids"])]


CONTEXT = {"role": "assistant", "content": "no target", "train": False}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": chat("a", "b", "c", "d")},
        {"messages": chat("a", "b", "c", "d"), "tools": TOOLS},
        {"messages": chat("a", "b"), "chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [*chat("a", "It is Oak."), *chat("c")]},
        {"messages": [chat("a")[0], {"role": "assistant", "content": "It is Oak.", "prefix": "It is"}]},
        {"messages": [*chat("a"), CONTEXT, {"role": "assistant", "content": "b"}]},
        {"messages": [*chat("a", "b", "c"), CONTEXT]},
    ],
)
def test_a_model_is_asked_what_precedes_the_last_answer_that_it_is_trained_on(row, tokenizer):
    """Also after another message of the assistant, where the answer begins a turn of its own."""
    qwen = family_tokenizer("qwen3")
    for each in [qwen] if row.keys() - {"messages"} else [qwen, tokenizer]:
        tokenized = tokenization.tokenize_conversations(each, [row], 1000)
        if tokenized.dropped:  # this template rewrites the first of two messages of the assistant
            assert each is qwen and CONTEXT in row["messages"]
            continue
        assert templates.encode_prompts(each, [row]) == [answers_of(tokenized.rows)[-1][0]]


def test_a_turn_that_is_context_is_no_label(tokenizer):
    messages = chat("a", "no target", "c", "d")
    messages[1]["train"] = False
    tokenized = tokenization.tokenize_conversations(tokenizer, [{"messages": messages}], 1000)
    ((context, labels),) = answers_of(tokenized.rows)
    assert "no target" in tokenizer.decode(context) and tokenizer.decode(labels) == "d<|im_end|>"
    assert tokenized.counts["answers"] == 1


@pytest.mark.parametrize("family", PLAIN, indirect=True)
@pytest.mark.parametrize("end", ["{stop}", "{stop}\n", "{stop}{stop}", "{stop}  "])
def test_an_answer_that_ends_with_the_stop_has_one(end, family):
    kind, tokenizer = family
    plain = chat("a", "Oak.", "b", "Elm.")
    ended = [
        {**message, "content": message["content"] + end.format(stop=kind.stop)}
        if message["role"] == "assistant"
        else message
        for message in plain
    ]
    expected = tokenization.tokenize_conversations(tokenizer, [{"messages": plain}], 1000)
    tokenized = tokenization.tokenize_conversations(tokenizer, [{"messages": ended}], 1000)
    assert [row["input_ids"] for row in tokenized.rows] == [row["input_ids"] for row in expected.rows]
    assert [row["labels"] for row in tokenized.rows] == [row["labels"] for row in expected.rows]
    assert tokenized.counts["answers end with the stop token's text: it is trained once"] == 2


def test_special_tokens_inside_a_text_are_counted(tokenizer):
    rows = [
        {"messages": chat("Explain.", f"A turn ends with {text}, you see.")} for text in ("<|im_end|>", "it")
    ]
    counts = tokenization.tokenize_conversations(tokenizer, rows, 1000).counts
    assert counts["rows hold <|im_end|> in their text, and it is read as the token"] == 1


def test_equal_answers_are_left_out_whether_cut_or_written_alike(tokenizer):
    def pair(chosen: str, rejected: str) -> dict[str, Any]:
        (question, one), (_, other) = (chat(f"Tell me {chosen[-5:]}", text) for text in (chosen, rejected))
        return {"prompt": [question], "chosen": [one], "rejected": [other]}

    long = "word " * 100
    rows = [pair(long + "yes", long + "no"), pair("yes", "no"), pair(f"yes{tokenizer.eos_token}", "yes")]
    tokenized = tokenization.tokenize_pairs(tokenizer, rows, 64)
    assert tokenized.indices == [1]
    assert [(index, bad.reason) for index, bad in tokenized.dropped] == [
        (0, Reason.equal_tokens),
        (2, Reason.equal_tokens),
    ]
    labeled = [
        {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
        for row in rows
        for key in ("chosen", "rejected")
    ]
    halves = tokenization.tokenize_unpaired(tokenizer, labeled, 64)
    assert (halves.indices, [index for index, _ in halves.dropped]) == ([2, 3], [0, 1, 4, 5])
