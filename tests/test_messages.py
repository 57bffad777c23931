"""What a row says beyond role and content is carried or refused with its reason; nothing is taken for what it
is not, and no row ends in anything but a reason.
"""

from __future__ import annotations

import json
import random

import pytest

from alignment_lab.config import Format
from alignment_lab.data.__main__ import main as build_mixture
from alignment_lab.data.formats import choose_converter, filled_columns, unused_parts
from alignment_lab.data.reasons import BadRow, DataError, Reason


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **fields) -> dict:
    return {"role": "assistant", "content": text, **fields}


def convert(row: dict, format: Format = Format.conversation, **options) -> dict:
    """The first of the rows that a row becomes."""
    return choose_converter(format, filled_columns([row]), "data", **options)(row)[0]


def messages(row: dict) -> list[dict]:
    return convert(row)["messages"]


def pair(row: dict, **options) -> dict:
    return convert(row, Format.preference, **options)


def refusal(row: dict, format: Format = Format.conversation) -> BadRow:
    with pytest.raises(BadRow) as error:
        convert(row, format)
    return error.value


# ---- tools and their calls

CALL = {"type": "function", "function": {"name": "weigh", "arguments": {"what": "ore"}}}
TOOL = {"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}
WRITTEN_CALLS = {
    "OpenAI, arguments as JSON": {
        "tool_calls": [{**CALL, "function": {"name": "weigh", "arguments": '{"what": "ore"}'}}]
    },
    "OpenAI, arguments as a mapping": {"tool_calls": [CALL]},
    "all of it as JSON": {"tool_calls": json.dumps([CALL])},
    "without its function": {"tool_calls": [{"name": "weigh", "arguments": {"what": "ore"}}]},
    "parameters": {"tool_calls": [{"name": "weigh", "arguments": None, "parameters": {"what": "ore"}}]},
    "args": {"tool_calls": [{"function": {"name": "weigh", "args": {"what": "ore"}}}]},
    "function_call": {"function_call": {"name": "weigh", "arguments": '{"what": "ore"}'}},
    "columns that a table fills with null": {"tool_calls": [CALL], "function_call": None, "name": None},
}


@pytest.mark.parametrize("shape", WRITTEN_CALLS)
def test_a_call_is_carried_in_one_shape(shape):
    turns = [user("Q"), {"role": "assistant", "content": None, **WRITTEN_CALLS[shape]}, assistant("A")]
    assert messages({"messages": turns})[1] == assistant("", tool_calls=[CALL])


def test_a_tools_turn_says_what_it_answers():
    turn = {"role": "tool", "content": "3 kg", "tool_call_id": "c0", "name": "weigh"}
    calling = assistant("", tool_calls=[{"id": "c0", **CALL}])
    converted = messages({"messages": [user("Q"), calling, turn, assistant("A")]})
    assert converted == [user("Q"), calling, turn, assistant("A")]


def test_sharegpts_calls_and_tools_are_openais():
    turns = [
        ("human", "Q"),
        ("function_call", json.dumps(CALL["function"])),
        ("observation", "3 kg"),
        ("gpt", "A"),
    ]
    row = {
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "tools": json.dumps([TOOL["function"]]),
    }
    converted = convert(row)
    assert converted["messages"][1:3] == [
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "content": "3 kg"},
    ]
    assert converted["tools"] == [TOOL]


@pytest.mark.parametrize("format", [Format.preference, Format.conversation, Format.unpaired, Format.prompt])
def test_tools_and_template_arguments_go_with_a_pair_in_any_format(format):
    extras = {"tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", **extras}
    assert extras.items() <= convert(row, format).items()


# ---- thoughts, weights, empty turns


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_is_carried(key):
    assert messages({"messages": [user("Q"), assistant("A", **{key: "hm"})]})[1]["reasoning_content"] == "hm"


@pytest.mark.parametrize(
    ("key", "off", "on"),
    [("weight", 0, 1), ("train", False, True), ("training", "false", None), ("trainable", 0.0, 1.0)],
)
def test_a_turn_of_no_weight_is_not_trained(key, off, on):
    turns = [user("Q"), assistant("wrong", **{key: off}), user("R"), assistant("A", **{key: on})]
    assert messages({"messages": turns}) == [
        user("Q"),
        assistant("wrong", train=False),
        user("R"),
        assistant("A"),
    ]


def test_a_conversation_without_an_answer_to_train_is_left_out():
    assert refusal({"messages": [user("Q"), assistant("A", weight=0)]}).reason is Reason.untrained


@pytest.mark.parametrize("content", ["", " \n", None])
def test_an_empty_turn_of_the_assistant_is_no_target(content):
    converted = messages({"messages": [user("Q"), assistant(content), user("R"), assistant("A")]})
    assert converted[1] == assistant(content or "", train=False)


# ---- prompts: history, system, context, turns that are begun


def test_history_comes_before_the_instruction():
    row = {"system": "S", "history": [["Q", "A"]], "instruction": "R", "input": "I", "output": "B"}
    assert messages(row) == [
        {"role": "system", "content": "S"},
        user("Q"),
        assistant("A"),
        user("R\n\nI"),
        assistant("B"),
    ]
    del row["output"]
    assert pair({**row, "chosen": "B", "rejected": "C"})["prompt"] == messages({**row, "output": "B"})[:-1]


@pytest.mark.parametrize(
    ("column", "turn", "joined"), [("S", "T", "S\n\nT"), ("S", "S", "S"), ("", "T", "T")]
)
def test_a_system_text_that_is_said_twice_is_one_turn(column, turn, joined):
    turns = [{"role": "system", "content": turn}, user("Q"), assistant("A")]
    row = {"system": column, "messages": turns}
    assert messages(row) == [{"role": "system", "content": joined}, *turns[1:]]


def test_the_assistants_turns_in_a_prompt_are_context():
    prompt = [user("Q"), assistant("old"), user("R")]
    expected = [user("Q"), assistant("old", train=False), user("R"), assistant("A")]
    assert messages({"prompt": prompt, "completion": [assistant("A")]}) == expected
    assert messages({"prompt": prompt, "chosen": "A", "rejected": "B"}) == expected
    assert pair({"prompt": prompt, "chosen": "A", "rejected": "B"})["prompt"] == prompt


@pytest.mark.parametrize("prompt", [[user("Q"), assistant("It is")], "Human: Q\n\nAssistant: It is"])
def test_an_answer_goes_on_in_a_turn_that_the_prompt_begins(prompt):
    begun = [user("Q"), assistant("It is")]
    assert pair({"prompt": prompt, "chosen": " A", "rejected": " B"}) == {
        "prompt": begun,
        "chosen": [assistant(" A")],
        "rejected": [assistant(" B")],
    }
    joined = [user("Q"), assistant("It is A", prefix="It is")]
    assert messages({"prompt": prompt, "completion": " A"}) == joined
    assert messages({"prompt": prompt, "chosen": " A", "rejected": " B"}) == joined


# ---- text that is taken for what it is

TURNS = [user("a \"b\" } { 'c'"), assistant("A\n[{")]
NUMPY = "[" + "\n ".join(map(repr, TURNS)) + "]"
WRITTEN = {
    "JSON": json.dumps(TURNS),
    "Python": repr(TURNS),
    "numpy prints no commas": NUMPY,
    "numpy's repr": f"array({TURNS!r},\n      dtype=object)",
}


@pytest.mark.parametrize("form", WRITTEN)
def test_messages_that_were_written_as_a_string_are_read(form):
    text = WRITTEN[form]
    assert messages({"messages": text}) == TURNS
    row = {"prompt": TURNS[0]["content"], "chosen": text, "rejected": text.replace("A", "B")}
    assert pair(row)["chosen"] == TURNS[1:]


def test_messages_in_other_wrappings_are_read():
    """One answer of two as a string, each message as a string, a table with a list for each key."""
    written = {"prompt": "Q", "chosen": repr([assistant("A")]), "rejected": "B"}
    assert pair(written) == {"prompt": [user("Q")], "chosen": [assistant("A")], "rejected": [assistant("B")]}
    assert messages({"messages": [json.dumps(turn) for turn in TURNS]}) == TURNS
    table = {"role": ["user", "assistant"], "content": ["Q", "A"], "name": None}
    assert messages({"messages": table}) == [user("Q"), assistant("A")]


def test_two_turns_in_a_row_are_both_the_answer():
    row = {
        key: [user("Q"), assistant("A"), assistant(text)]
        for key, text in (("chosen", "B"), ("rejected", "C"))
    }
    assert pair(row)["chosen"] == [assistant("A"), assistant("B")]


def test_an_answer_in_json_is_an_answer():
    assert messages({"prompt": "Write a chat.", "completion": json.dumps(TURNS)})[1] == assistant(
        json.dumps(TURNS)
    )


PLAY = "Human: Who is there?\n\nAssistant: The wind."


@pytest.mark.parametrize("column", ["completion", "output", "response", "answer"])
def test_a_play_is_one_answer(column):
    assert messages({"prompt": "Write a play.", column: PLAY}) == [user("Write a play."), assistant(PLAY)]
    assert messages({"prompt": [user("Write a play.")], column: PLAY})[1:] == [assistant(PLAY)]
    assert pair({"prompt": "Write a play.", "chosen": PLAY, "rejected": PLAY + "!"})["chosen"] == [
        assistant(PLAY)
    ]


def test_a_line_that_begins_with_human_is_no_transcript():
    assert messages({"prompt": "Human: 37 degrees. Cat?", "completion": "38"})[0] == user(
        "Human: 37 degrees. Cat?"
    )


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] Q [/INST]",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>",
        "<bos><start_of_turn>user\nQ<end_of_turn>\n",
        "<|user|>\nQ</s>\n",
        "<｜begin▁of▁sentence｜><｜User｜>Q",
    ],
)
def test_text_that_a_template_was_applied_to_is_told(text):
    rows = [
        {"prompt": text, "completion": "A"},
        {"messages": [user(text), assistant("A")]},
        {"instruction": text, "output": "A"},
    ]
    assert {refusal(row).reason for row in rows} == {Reason.templated}
    assert messages({"prompt": "Explain " + text, "completion": "A"})[0] == user("Explain " + text)


# ---- pairs from scores and votes

SCORED = {
    "instruction": "Q",
    "completions": [
        {"response": text, "overall_score": score}
        for text, score in (("A", 3), ("B", "5"), ("C", 1.5), ("D", 5))
    ],
}
COMPARED = {
    "SHP": {"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": 0},
    "HelpSteer3": {"context": [user("Q")], "response1": "A", "response2": "B", "overall_preference": 2},
    "HelpSteer2": {"prompt": "Q", "response_1": "B", "response_2": "A", "preference_strength": -1},
    "UltraFeedback": {
        "instruction": "Q",
        "completions": [
            {"response": "A", "fine-grained_score": 1.0},
            {"response": "B", "fine-grained_score": 4.5},
        ],
    },
}


@pytest.mark.parametrize("shape", COMPARED)
def test_a_pair_is_told_from_a_vote_or_scores(shape):
    row = COMPARED[shape]
    expected = {"prompt": [user("Q")], "chosen": [assistant("B")], "rejected": [assistant("A")]}
    assert pair(row) == expected
    assert messages(row) == [user("Q"), assistant("B")]
    assert convert(row, Format.prompt) == {"prompt": [user("Q")]}
    assert not unused_parts(row, Format.preference)


def test_the_best_answer_is_set_against_the_worst_or_a_random_one():
    """Of equals the first is the best; by another seed another of the worse ones is rejected."""
    assert [pair(SCORED)[key][0]["content"] for key in ("chosen", "rejected")] == ["B", "C"]
    drawn = [pair(SCORED, rejected="random", seed=seed)["rejected"][0]["content"] for seed in range(20)]
    assert set(drawn) == {"A", "C"}
    assert drawn == [
        pair(SCORED, rejected="random", seed=seed)["rejected"][0]["content"] for seed in range(20)
    ]


def test_one_answer_can_be_the_last_column_by_itself():
    """GSM8K, OpenOrca and Capybara have columns of their own."""
    assert messages({"question": "Q", "answer": "A"}) == [user("Q"), assistant("A")]
    openorca = {"system_prompt": "S", "question": "Q", "response": "A"}
    assert messages(openorca) == [{"role": "system", "content": "S"}, user("Q"), assistant("A")]
    capybara = {"conversation": [{"input": "Q", "output": "A"}, {"input": "R", "output": "B"}]}
    assert messages(capybara) == [user("Q"), assistant("A"), user("R"), assistant("B")]


# ---- rows that cannot be used: each kind has its reason, and a sentence that names what is wrong

PROMPT = {"prompt": "Q"}
LABELED = {"prompt": "Q", "completion": "A", "label": True}
PAIR = {"prompt": "Q", "chosen": "A", "rejected": "B"}


def chat(*turns: object) -> dict:
    return {"messages": [user("Q"), *turns]}


BAD = {
    "a list": ([user("Q")], Reason.not_a_row, 'give {"messages": [...]}'),
    "null": (None, Reason.not_a_row, "the row is null"),
    "no answer": (PROMPT, Reason.missing_column, "`completion`"),
    "an instruction that is a number": (
        {"instruction": 3, "output": "A"},
        Reason.not_text,
        "`instruction` is not text but a number",
    ),
    "an input that is a list": (
        {"instruction": "Q", "input": [3], "output": "A"},
        Reason.not_text,
        "`input` is not text but a list",
    ),
    "a system that is a mapping": (
        {**PROMPT, "completion": "A", "system": {"a": 1}},
        Reason.not_text,
        "`system` is not text but a mapping",
    ),
    "a completion that is true": (
        {**PROMPT, "completion": True},
        Reason.not_text,
        "`completion` is not text but true",
    ),
    "messages that are text": (
        {"messages": "Hello there"},
        Reason.not_messages,
        "`messages` is text and not a list",
    ),
    "messages that are cut": (
        {"messages": json.dumps(TURNS)[:-3]},
        Reason.not_messages,
        "`messages` is a string",
    ),
    "a message that is null": (chat(None), Reason.not_messages, "`messages` holds null"),
    "a history that is text": (
        {"instruction": "Q", "output": "A", "history": "Q: A"},
        Reason.not_messages,
        "`history`",
    ),
    "an empty answer": ({**PROMPT, "completion": " "}, Reason.empty, "`completion` is empty"),
    "an empty question": (
        chat(assistant("A"), user(""), assistant("B")),
        Reason.empty,
        "user's turn without text",
    ),
    "an answer without a prompt": (
        {"completion": "A"},
        Reason.no_prompt,
        "no prompt that `completion` answers",
    ),
    "the user speaks last": (chat(), Reason.not_an_answer, "does not end with the assistant's turn"),
    "no turn that is trained": (chat(assistant("A", train=False)), Reason.untrained, "no answer"),
    "pictures": ({"images": ["a.png"], **chat(assistant("A"))}, Reason.media, "`images`"),
    "a picture in a message": (
        chat(user([{"type": "image_url"}]), assistant("A")),
        Reason.media,
        "image_url",
    ),
    "another part": (chat(assistant([{"type": "refusal", "refusal": "no"}])), Reason.bad_content, "refusal"),
    "a content that is a number": (
        chat(assistant(7)),
        Reason.bad_content,
        "content is not text but a number",
    ),
    "content under another key": (
        chat({"role": "assistant", "text": "A"}),
        Reason.no_content,
        "it has role, text",
    ),
    "an unknown role": (
        chat({"role": "developer", "content": "A"}),
        Reason.unknown_role,
        "'developer' is not one of system, user",
    ),
    "a role that is a list": (
        chat({"role": ["user"], "content": "A"}),
        Reason.unknown_role,
        "known role: it is not text but a list",
    ),
    "no role": (chat({"speaker": "user", "content": "A"}), Reason.unknown_role, "it has speaker, content"),
    "a role that is null": (chat({"role": None, "content": "A"}), Reason.unknown_role, "`role` is null"),
    "half a weight": (chat(assistant("A", weight=0.5)), Reason.bad_weight, "`weight`"),
    "a call without a name": (
        chat(assistant("", tool_calls=[{"arguments": {}}])),
        Reason.bad_tools,
        "without the tool's name",
    ),
    "arguments that are cut": (
        chat(assistant("", tool_calls=[{"name": "f", "arguments": '{"a'}])),
        Reason.bad_tools,
        "arguments are no mapping but text",
    ),
    "tools that are text": (
        {**chat(assistant("A")), "tools": "weigh"},
        Reason.bad_tools,
        "`tools` is no list",
    ),
    "template arguments in a list": (
        {**chat(assistant("A")), "chat_template_kwargs": [1]},
        Reason.bad_kwargs,
        "`chat_template_kwargs`",
    ),
    "a template in the prompt": (
        {"prompt": "[INST] Q [/INST]", "completion": "A"},
        Reason.templated,
        "`prompt`",
    ),
}
BAD_PAIRS = {
    "equal answers": ({**PAIR, "rejected": "A"}, Reason.equal_answers, "`chosen` equals `rejected`"),
    "a margin that is text": ({**PAIR, "margin": "much"}, Reason.bad_number, "`margin`"),
    "a margin beyond any float": ({**PAIR, "margin": 10**400}, Reason.bad_number, "`margin`"),
    "rejected is null": ({**PAIR, "rejected": None}, Reason.missing_column, "`rejected` is missing"),
    "a vote for neither": (
        {"prompt": "Q", "response_1": "A", "response_2": "B", "preference_strength": 0},
        Reason.no_preference,
        "prefers neither",
    ),
    "a label beyond two": (
        {"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": 2},
        Reason.bad_label,
        "`labels`",
    ),
}


@pytest.mark.parametrize("defect", [*BAD, *BAD_PAIRS])
def test_a_bad_row_has_its_reason(defect):
    format = Format.conversation if defect in BAD else Format.preference
    row, reason, words = (BAD | BAD_PAIRS)[defect]
    columns = {"messages"} if defect in BAD else filled_columns([row]) | {"rejected"}
    with pytest.raises(BadRow) as error:
        choose_converter(format, columns, "data")(row)
    assert error.value.reason is reason
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("margin", [0.5, "0.5", " 5e-1"])
def test_a_number_may_be_text_as_in_csv(margin):
    assert pair({**PAIR, "margin": margin})["margin"] == 0.5
    assert "margin" not in pair({**PAIR, "margin": ""})


def test_case_and_blanks_do_not_make_another_role():
    turns = [{"role": "User ", "content": "Q"}, {"role": "ASSISTANT", "content": "A"}]
    assert messages({"messages": turns}) == [user("Q"), assistant("A")]


def test_content_in_parts_of_text_is_joined():
    parts = [{"type": "text", "text": "Q"}, {"type": "text", "text": "R", "image_url": None}]
    assert messages({"messages": [user(parts), assistant("A")]})[0] == user("QR")


# ---- what is not used is told


def test_columns_and_keys_that_are_not_used_are_named():
    row = {
        "id": 7,
        "note": None,
        "answer": [1],
        "prompt": "Q",
        **chat({**assistant("A"), "mood": "calm", "x": None}),
    }
    assert unused_parts(row, Format.conversation) == {"id", "answer", "prompt", "messages[].mood"}
    asked = {**user("Q"), "tool_calls": [CALL], "name": "Ann"}
    assert unused_parts({"messages": [asked, assistant("A")]}, Format.conversation) == {
        "messages[].tool_calls"
    }
    labeled = {"label": True, **chat(assistant("A", weight=1))}
    assert unused_parts(labeled, Format.unpaired) == {"messages[].weight"}
    assert unused_parts({**PAIR, "score_chosen": 1, "margin": 2}, Format.unpaired) == {
        "score_chosen",
        "margin",
    }
    assert unused_parts({"text": "a", "url": "b"}, Format.text) == {"url"}


UNUSED_KEYS = {  # an answer, and what of it is told
    "a key of a call": (
        assistant("", tool_calls=[{**CALL, "mood": 1, "index": None}]),
        {"tool_calls[].mood"},
    ),
    "a key of its function": (
        assistant("", tool_calls=json.dumps([{"function": {"name": "f", "input": {"x": 1}}}])),
        {"tool_calls[].function.input"},
    ),
    "a key of a call without a function": (
        assistant("", function_call={"name": "f", "kwargs": '{"x": 1}', "id": "c0"}),
        {"function_call.kwargs"},
    ),
    "a number where a call's id belongs": (
        assistant("", tool_calls=[{**CALL, "id": 5}]),
        {"tool_calls[].id"},
    ),
    "arguments twice": (
        assistant("", tool_calls=[{"name": "f", "arguments": {"x": 1}, "parameters": {"x": 2}}]),
        {"tool_calls[].parameters"},
    ),
    "calls twice": (assistant("", tool_calls=[CALL], function_call={"name": "f"}), {"function_call"}),
    "the same calls twice": (assistant("", tool_calls=[CALL], function_call=[CALL]), set()),
    "a call in the content": (
        {"from": "function_call", "value": '{"name": "f", "input": {"x": 1}}'},
        {"value.input"},
    ),
    "two contents": (assistant("A", value="B"), {"value"}),
    "one content, twice": ({**assistant("A", value="A"), "from": "gpt"}, set()),
    "an empty content": (assistant([], value="A"), set()),
    "two speakers": (assistant("A") | {"from": "human"}, {"from"}),
    "two thoughts": (assistant("A", thinking="I", reasoning="J"), {"reasoning"}),
    "a beginning that is another's": (assistant("A", prefix="B"), {"prefix"}),
}


@pytest.mark.parametrize("kind", UNUSED_KEYS)
def test_what_a_message_says_twice_or_in_a_call_is_used_or_told(kind):
    answer, expected = UNUSED_KEYS[kind]
    row = chat(answer)
    converted = messages(row)[-1]
    assert unused_parts(row, Format.conversation) == {f"messages[].{key}" for key in expected}
    assert converted["content"] == ("" if "tool_calls" in converted else "A")


def test_a_built_mixture_says_what_it_left_behind(tmp_path, capsys):
    rows = [{**chat(assistant(f"A{number}", mood="calm")), "id": number} for number in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["method=sft", "data=local", f"data.path={path}"]
    assert build_mixture(["build", *settings, f"out={tmp_path / 'mix'}"]) == 0
    assert "not used: id, messages[].mood" in capsys.readouterr().out


def test_of_two_columns_of_tools_the_second_is_told():
    row = {**chat(assistant("A")), "functions": [{"name": "f"}], "tools": [TOOL]}
    assert convert(row)["tools"] == [TOOL]
    assert unused_parts(row, Format.conversation) == {"functions"}


@pytest.mark.parametrize("accepted", [[1], "A", [], [None]])
def test_an_answer_column_is_a_list_of_texts_or_ignored(accepted):
    assert "answer" not in convert({**PAIR, "answer": accepted})
    assert convert({**PAIR, "answer": ["A"]})["answer"] == ["A"]


# ---- whatever a row holds

COLUMNS = [
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "question",
    "instruction",
    "input",
    "completion",
    "output",
    "response",
    "answer",
    "chosen",
    "rejected",
    "label",
    "margin",
    "system",
    "system_prompt",
    "history",
    "tools",
    "functions",
    "images",
    "chat_template_kwargs",
    "text",
    "completions",
    "human_ref_A",
    "human_ref_B",
    "labels",
    "context",
    "response1",
    "response2",
    "overall_preference",
    "id",
]
KEYS = [
    "role",
    "from",
    "content",
    "value",
    "tool_calls",
    "function_call",
    "function",
    "name",
    "arguments",
    "weight",
    "train",
    "reasoning_content",
    "tool_call_id",
    "type",
    "text",
    "input",
    "output",
    "response",
    "score",
    3,
]
TEXTS = [
    "",
    " ",
    "A",
    "user",
    "assistant",
    "Human: Q\n\nAssistant: A",
    json.dumps(TURNS),
    repr(TURNS),
    NUMPY[:-4],
    "[{'role': ",
    "[" * 5000,
    '{"name": "f"}',
    "<|im_start|>user\nQ",
    "\ud83d",
    "true",
    "array([{'from': 1}])",
]
SCALARS = [None, True, False, 0, 1, -1.5, float("nan"), float("inf"), 10**400, b"a"]


def anything(rng: random.Random, depth: int = 3):
    kind = rng.random()
    if depth == 0 or kind < 0.35:
        return rng.choice(TEXTS if rng.random() < 0.6 else SCALARS)
    if kind < 0.6:
        return [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind < 0.8:
        return [rng.choice([user("Q"), assistant("A"), anything(rng, 1)]) for _ in range(rng.randrange(1, 4))]
    return {rng.choice(KEYS): anything(rng, depth - 1) for _ in range(rng.randrange(4))}


@pytest.mark.parametrize("format", list(Format))
def test_no_row_ends_in_anything_but_a_reason(format):
    """Rows of every shape, with random nested values in some of their columns."""
    rng = random.Random(format.name)
    shapes = (PAIR, chat(assistant("A")), {**LABELED, "text": "A"}, SCORED, *COMPARED.values())
    used = 0
    for _ in range(1500):
        shape = rng.choice(shapes)
        try:
            convert_row = choose_converter(format, set(shape), "data")
        except DataError:
            continue
        row = {**shape, **{column: anything(rng) for column in rng.sample(COLUMNS, rng.randrange(4))}}
        for column in rng.sample(sorted(shape), rng.randrange(2)):
            row[column] = anything(rng)
        unused_parts(row, format)
        try:
            converted = convert_row(row)
        except BadRow:
            continue
        used += 1
        json.dumps(converted)
    assert used > 50
