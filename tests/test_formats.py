"""A row in any layout is converted to one of TRL's dataset types, or the reason why it cannot be is given."""

from __future__ import annotations

import re

import pytest

from alignment_lab.config import Format
from alignment_lab.data import DataError, load_rows
from alignment_lab.data.formats import REQUIRED_COLUMNS, choose_converter, filled_columns
from alignment_lab.data.formats.answered import to_conversation, to_text, to_unpaired
from alignment_lab.data.formats.preference import pair_to_unpaired, to_preference
from alignment_lab.data.reasons import BadRow, Reason


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def sharegpt(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


PAIR = {"prompt": [user("Q")], "chosen": [assistant("A")], "rejected": [assistant("B")]}
LATER = {
    "prompt": [user("Q"), assistant("R"), user("S")],
    "chosen": [assistant("A")],
    "rejected": [assistant("B")],
}
WITH_SYSTEM = {**PAIR, "prompt": [system("Y"), user("Q")]}

PREFERENCES = {
    "strings": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, PAIR),
    "messages": (PAIR, PAIR),
    "a prompt of several turns": (LATER, LATER),
    "a prompt string and lists of messages": ({**PAIR, "prompt": "Q"}, PAIR),
    "a question (Orca)": ({"system": "Y", "question": "Q", "chosen": "A", "rejected": "B"}, WITH_SYSTEM),
    "an instruction (alpaca)": ({"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"}, PAIR),
    "no prompt, whole conversations": (
        {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
        PAIR,
    ),
    "a prompt and whole conversations (UltraFeedback)": (
        {
            "prompt": "Q",
            "chosen": [user("Q"), assistant("A")],
            "rejected": [user("Q"), assistant("B")],
            "score_chosen": 8.0,
        },
        PAIR,
    ),
    "conversations with a shared system message": (
        {
            "chosen": [system("Y"), user("Q"), assistant("A")],
            "rejected": [system("Y"), user("Q"), assistant("B")],
        },
        WITH_SYSTEM,
    ),
    "conversations that share several turns": (
        {
            key: [user("Q"), assistant("R"), user("S"), assistant(answer)]
            for key, answer in (("chosen", "A"), ("rejected", "B"))
        },
        LATER,
    ),
    "an earlier answer that equals the last one": (  # the shared messages end before the answers
        {
            "chosen": [user("Q"), assistant("A"), user("S"), assistant("A")],
            "rejected": [user("Q"), assistant("A"), user("S"), assistant("B")],
        },
        {**PAIR, "prompt": [user("Q"), assistant("A"), user("S")]},
    ),
    "transcripts (Anthropic HH)": (
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        PAIR,
    ),
    "transcripts of several turns": (
        {
            key: f"\n\nHuman: Q\n\nAssistant: R\n\nHuman: S\n\nAssistant: {answer}"
            for key, answer in (("chosen", "A"), ("rejected", "B"))
        },
        LATER,
    ),
    "a transcript without the leading lines": (
        {"chosen": "Human: Q\n\nAssistant: A", "rejected": "Human: Q\n\nAssistant:B"},
        PAIR,
    ),
    "a prompt transcript": ({"prompt": "\n\nHuman: Q", "chosen": "A", "rejected": "B"}, PAIR),
    "ShareGPT with one message an answer": (
        {
            "conversations": [sharegpt("human", "Q")],
            "chosen": sharegpt("gpt", "A"),
            "rejected": sharegpt("gpt", "B"),
        },
        PAIR,
    ),
    "ShareGPT with a system column": (
        {
            "system": "Y",
            "conversations": [sharegpt("human", "Q")],
            "chosen": sharegpt("gpt", "A"),
            "rejected": sharegpt("gpt", "B"),
        },
        WITH_SYSTEM,
    ),
    "ShareGPT with a system turn": (
        {
            "conversations": [sharegpt("system", "Y"), sharegpt("human", "Q")],
            "chosen": sharegpt("gpt", "A"),
            "rejected": sharegpt("gpt", "B"),
        },
        WITH_SYSTEM,
    ),
    "a system column": ({"system": "Y", "prompt": "Q", "chosen": "A", "rejected": "B"}, WITH_SYSTEM),
    "an empty system column": ({"system": "", "prompt": "Q", "chosen": "A", "rejected": "B"}, PAIR),
    "columns that a mixed file fills with null": (
        {
            "prompt": None,
            "messages": None,
            "conversations": [sharegpt("human", "Q")],
            "chosen": sharegpt("gpt", "A"),
            "rejected": sharegpt("gpt", "B"),
        },
        PAIR,
    ),
    "the strings of a right answer": (
        {**PAIR, "answer": ["A", "a"], "subject": "x"},
        {**PAIR, "answer": ["A", "a"]},
    ),
    "an answer that is not a list of strings": ({**PAIR, "answer": "A"}, PAIR),
    "a prompt transcript that waits for its answer": (
        {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " A", "rejected": " B"},
        None,
    ),
    "a system column beside whole conversations": (
        {"system": "Y", "chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
        WITH_SYSTEM,
    ),
    "a system column, a prompt and whole conversations": (
        {
            "system": "Y",
            "prompt": "Q",
            "chosen": [user("Q"), assistant("A")],
            "rejected": [user("Q"), assistant("B")],
        },
        WITH_SYSTEM,
    ),
}


@pytest.mark.parametrize("shape", PREFERENCES)
def test_a_preference_in_any_shape(shape):
    row, expected = PREFERENCES[shape]
    converted = to_preference(row)
    if expected is None:  # the space before an answer may be kept or not
        converted, expected = (
            {
                key: [{**message, "content": message["content"].strip()} for message in converted[key]]
                for key in converted
            },
            PAIR,
        )
    assert converted == expected


CHAT = {"messages": [user("Q"), assistant("A")]}
BEGUN = {"prompt": [user("Q"), assistant("A")], "completion": [assistant("B")]}
CONVERSATIONS = {
    "messages": (CHAT, CHAT),
    "ShareGPT": ({"conversations": [sharegpt("human", "Q"), sharegpt("gpt", "A")]}, CHAT),
    "ShareGPT with a system column": (
        {"system": "Y", "conversations": [sharegpt("human", "Q"), sharegpt("gpt", "A")]},
        {"messages": [system("Y"), user("Q"), assistant("A")]},
    ),
    "alpaca": ({"instruction": "Q", "output": "A"}, CHAT),
    "alpaca with an empty input": ({"instruction": "Q", "input": "", "output": "A"}, CHAT),
    "alpaca with an input": (
        {"instruction": "Q", "input": "I", "output": "A"},
        {"messages": [user("Q\n\nI"), assistant("A")]},
    ),
    "alpaca with a system column": (
        {"instruction": "Q", "input": "", "output": "A", "system": "Y"},
        {"messages": [system("Y"), user("Q"), assistant("A")]},
    ),
    "prompt and completion": ({"prompt": "Q", "completion": "A"}, CHAT),
    "prompt and completion as messages": ({"prompt": [user("Q")], "completion": [assistant("A")]}, CHAT),
    "instruction and response": ({"instruction": "Q", "response": "A"}, CHAT),
    "several turns": (
        {"messages": [system("Y"), user("Q"), assistant("A"), user("R"), assistant("B")]},
        {"messages": [system("Y"), user("Q"), assistant("A"), user("R"), assistant("B")]},
    ),
    "a tool's turn": (
        {
            "conversations": [
                sharegpt("human", "Q"),
                sharegpt("function_call", "f()"),
                sharegpt("observation", "1"),
                sharegpt("gpt", "A"),
            ]
        },
        {"messages": [user("Q"), assistant("f()"), {"role": "tool", "content": "1"}, assistant("A")]},
    ),
    "a turn without content": (
        {"messages": [user("Q"), {"role": "assistant", "content": None}, user("R"), assistant("A")]},
        {"messages": [user("Q"), {**assistant(""), "train": False}, user("R"), assistant("A")]},
    ),
    "columns that a mixed file fills with null": (
        {"messages": None, "instruction": "Q", "input": None, "output": "A"},
        CHAT,
    ),
    "an answer column that a mixed file fills with null": (
        {"prompt": None, "completion": None, "instruction": "Q", "output": "A"},
        CHAT,
    ),
}


@pytest.mark.parametrize("shape", CONVERSATIONS)
def test_a_conversation_in_any_shape(shape):
    row, expected = CONVERSATIONS[shape]
    assert to_conversation(row) == expected


ROLES = {
    "human": "user",
    "prompter": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}
ROLES |= {
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_every_word_for_a_role(role, keys):
    row = {"messages": [dict(zip(keys, (role, "Q"), strict=True)), user("R"), assistant("A")]}
    assert to_conversation(row)["messages"][0] == {"role": ROLES[role], "content": "Q"}


# ---- transcripts in one string

TRANSCRIPTS = {
    "a marker behind one line break is text": (
        "\n\nHuman: Q\nHuman: no\n\nAssistant: A",
        [user("Q\nHuman: no"), assistant("A")],
    ),
    "a marker inside of a line is text": (
        "\n\nHuman: the Assistant: said\n\nAssistant: A",
        [user("the Assistant: said"), assistant("A")],
    ),
    "a paragraph stays one turn": (
        "\n\nHuman: Q\n\nmore\n\nAssistant: A\n\nand more",
        [user("Q\n\nmore"), assistant("A\n\nand more")],
    ),
    "the last Human turn begins anew": (
        "\n\nHuman: Q\n\nHuman: again\n\nAssistant: A",
        [user("Q"), user("again"), assistant("A")],
    ),
    "another script": ("\n\nHuman: é模\n\nAssistant: ö", [user("é模"), assistant("ö")]),
}


@pytest.mark.parametrize("kind", TRANSCRIPTS)
def test_a_transcript_is_split_at_its_markers_alone(kind):
    text, expected = TRANSCRIPTS[kind]
    converted = to_preference(
        {"chosen": text, "rejected": text.rpartition("Assistant: ")[0] + "Assistant: B"}
    )
    assert converted["prompt"] + converted["chosen"] == expected


def test_a_marker_in_the_middle_of_an_answer_makes_no_transcript():
    """The answer does not begin with a marker, so it is one message, whatever it quotes."""
    quoted = "It went so:\n\nHuman: hello\n\nAssistant: hi"
    converted = to_preference({"prompt": "Q", "chosen": quoted, "rejected": "B"})
    assert converted["chosen"] == [assistant(quoted)]


def test_transcripts_that_part_early_keep_their_own_turns():
    converted = to_preference(
        {
            "chosen": "Human: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: B",
            "rejected": "Human: Q\n\nAssistant: C",
        }
    )
    assert converted["prompt"] == [user("Q")]
    assert converted["chosen"] == [assistant("A"), user("R"), assistant("B")]


# ---- rows that cannot be used

BAD = {
    "no chosen": ({"prompt": "Q", "rejected": "B"}, Reason.missing_column, "`chosen` is missing"),
    "chosen is null": (
        {"prompt": "Q", "chosen": None, "rejected": "B"},
        Reason.missing_column,
        "`chosen` is missing",
    ),
    "chosen is a number": (
        {"prompt": "Q", "chosen": 3, "rejected": "B"},
        Reason.not_text,
        "`chosen` is not text but a number",
    ),
    "no rejected": ({"prompt": "Q", "chosen": "A"}, Reason.missing_column, "`rejected` is missing"),
    "no prompt": ({"chosen": "A", "rejected": "B"}, Reason.no_prompt, "no prompt"),
    "conversations that share nothing": (
        {"chosen": [user("Q"), assistant("A")], "rejected": [user("R"), assistant("B")]},
        Reason.no_prompt,
        "no prompt",
    ),
    "an answer by the user": (
        {"prompt": "Q", "chosen": [user("A")], "rejected": "B"},
        Reason.not_an_answer,
        "`chosen` does not end with",
    ),
    "a transcript that ends with the user": (
        {"chosen": "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        Reason.not_an_answer,
        "`chosen` does not end with the assistant's turn",
    ),
    "an unknown role": (
        {"prompt": "Q", "chosen": [{"role": "narrator", "content": "A"}], "rejected": "B"},
        Reason.unknown_role,
        "known role",
    ),
    "a message that is text": (
        {"prompt": "Q", "chosen": ["A"], "rejected": ["B"]},
        Reason.not_messages,
        "`chosen` holds text where a message belongs",
    ),
    "a picture": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "A", "rejected": "B"},
        Reason.media,
        "a part that is not text: image",
    ),
    "an empty chosen": (
        {"prompt": "Q", "chosen": "", "rejected": "B"},
        Reason.empty,
        "`chosen` is empty",
    ),
    "a blank rejected": (
        {"prompt": "Q", "chosen": "A", "rejected": " \n"},
        Reason.empty,
        "`rejected` is empty",
    ),
    "an empty list": ({"prompt": "Q", "chosen": [], "rejected": "B"}, Reason.empty, "`chosen` is empty"),
    "a blank prompt": (
        {"prompt": " ", "chosen": "A", "rejected": "B"},
        Reason.empty,
        "`prompt` is empty",
    ),
    "a transcript whose last turn is empty": (
        {"chosen": "\n\nHuman: Q\n\nAssistant:", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        Reason.empty,
        "`chosen` is empty",
    ),
    "equal answers": (
        {"prompt": "Q", "chosen": "A", "rejected": "A"},
        Reason.equal_answers,
        "`chosen` equals `rejected`",
    ),
    "equal conversations": (
        {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("A")]},
        Reason.equal_answers,
        "`chosen` equals `rejected`",
    ),
    "a prompt beside conversations that begin differently": (
        {"prompt": "Q", "chosen": [user("Q"), assistant("A")], "rejected": [user("Q!"), assistant("B")]},
        Reason.no_prompt,
        "prompt",
    ),
}


@pytest.mark.parametrize("defect", BAD)
def test_a_row_that_cannot_be_used_says_why(defect):
    row, kind, reason = BAD[defect]
    with pytest.raises(BadRow) as error:
        to_preference(row)
    assert error.value.reason is kind
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": [user("Q")]}, Reason.not_an_answer),
        ({"messages": []}, Reason.missing_column),
        ({"messages": None}, Reason.missing_column),
        ({"messages": [user("Q"), assistant(" ")]}, Reason.empty),
        ({"instruction": "Q", "output": ""}, Reason.empty),
        ({"instruction": "Q"}, Reason.missing_column),
        ({"conversations": [sharegpt("gpt", "A"), sharegpt("human", "Q")]}, Reason.not_an_answer),
        ({"messages": [{"content": "Q"}, assistant("A")]}, Reason.unknown_role),
        ({"messages": [assistant("A"), assistant("B")]}, Reason.no_prompt),
    ],
)
def test_a_conversation_that_cannot_be_used(row, kind):
    with pytest.raises(BadRow) as error:
        to_conversation(row)
    assert error.value.reason is kind


# ---- margins, labeled answers, texts


@pytest.mark.parametrize(("margin", "expected"), [(3, 3.0), (0.5, 0.5), (-1.0, -1.0), (0, 0.0)])
def test_a_preference_keeps_its_margin(margin, expected):
    converted = to_preference({**PAIR, "margin": margin})
    assert converted == {**PAIR, "margin": expected}
    assert type(converted["margin"]) is float


def test_a_margin_is_optional_and_for_pairs_alone():
    """A mixed file fills it with null; labeled answers and the preferred conversation have none."""
    row = {**PAIR, "margin": "much"}
    assert to_preference({**PAIR, "margin": None}) == PAIR
    assert all("margin" not in half for half in pair_to_unpaired(row))
    assert choose_converter(Format.conversation, set(row), "data")(row) == [CHAT | PAIR]


@pytest.mark.parametrize("margin", ["much", "nan", True, [1.0], float("nan"), float("inf"), -float("inf")])
def test_a_margin_that_is_not_a_finite_number_is_refused(margin):
    with pytest.raises(BadRow, match="`margin` is not a finite number"):
        to_preference({**PAIR, "margin": margin})


LABELED = {"prompt": [user("Q")], "completion": [assistant("A")], "label": True}
UNPAIRED = {
    "strings": ({"prompt": "Q", "completion": "A", "label": True}, LABELED),
    "messages": (LABELED, LABELED),
    "a response": ({"prompt": "Q", "response": "A", "label": True}, LABELED),
    "alpaca": ({"instruction": "Q", "input": "", "output": "A", "label": True}, LABELED),
    "a system column": (
        {"system": "Y", "prompt": "Q", "completion": "A", "label": True},
        {**LABELED, "prompt": [system("Y"), user("Q")]},
    ),
    "one conversation": ({"messages": [user("Q"), assistant("A")], "label": True}, LABELED),
    "ShareGPT": ({"conversations": [sharegpt("human", "Q"), sharegpt("gpt", "A")], "label": True}, LABELED),
    "a conversation of several turns": (
        {"messages": [user("Q"), assistant("R"), user("S"), assistant("A")], "label": True},
        {**LABELED, "prompt": LATER["prompt"]},
    ),
    "the strings of a right answer": (
        {**LABELED, "answer": ["A"], "subject": "x"},
        {**LABELED, "answer": ["A"]},
    ),
    "columns that a mixed file fills with null": (
        {"messages": None, "prompt": "Q", "completion": "A", "label": True},
        LABELED,
    ),
}


@pytest.mark.parametrize("shape", UNPAIRED)
def test_a_labeled_answer_in_any_shape(shape):
    row, expected = UNPAIRED[shape]
    assert to_unpaired(row) == expected
    assert choose_converter(Format.unpaired, set(row), "data")(row) == [expected]


GOOD, POOR = (
    [True, 1, 1.0, "true", "True", " TRUE ", "1", "yes"],
    [False, 0, 0.0, "false", "False", "0", "no"],
)


@pytest.mark.parametrize(
    ("label", "expected"), [*((label, True) for label in GOOD), *((label, False) for label in POOR)]
)
def test_every_word_for_a_label(label, expected):
    assert to_unpaired({**LABELED, "label": label})["label"] is expected


@pytest.mark.parametrize(
    ("label", "what"),
    [
        ("good?", "'good?' is not one of true, yes, 1, good"),
        ("", "'' is not one of true"),
        *((label, f"{label!r} is not 0 or 1") for label in (2, -1, 0.5, float("nan"))),
        (10**400, f"{10**39} is not 0 or 1"),
        ([True], "it is a list"),
        ({"value": True}, "it is a mapping"),
    ],
)
def test_a_label_that_is_neither_true_nor_false_is_named(label, what):
    with pytest.raises(BadRow, match=re.escape(f"`label` is neither true nor false: {what}")):
        to_unpaired({**LABELED, "label": label})


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        ({**LABELED, "label": None}, Reason.missing_column, "`label` is missing"),
        ({"prompt": "Q", "label": True}, Reason.missing_column, "none of `completion`, `output`, `response`"),
        ({"completion": "A", "label": True}, Reason.no_prompt, "no prompt that `completion` answers"),
        (
            {**LABELED, "completion": [user("A")]},
            Reason.not_an_answer,
            "`completion` does not end with the assistant's turn",
        ),
        (
            {**LABELED, "completion": [user("Q"), assistant("A")]},
            Reason.not_an_answer,
            "`completion` does not begin with the assistant's turn",
        ),
        ({"messages": [user("Q")], "label": True}, Reason.not_an_answer, "does not end with the assistant's"),
        ({**LABELED, "completion": " "}, Reason.empty, "`completion` is empty"),
    ],
)
def test_a_labeled_answer_that_cannot_be_used(row, kind, reason):
    with pytest.raises(BadRow) as error:
        to_unpaired(row)
    assert (error.value.reason, reason in str(error.value)) == (kind, True)


@pytest.mark.parametrize("shape", PREFERENCES)
def test_a_preference_is_a_good_and_a_bad_answer_to_one_prompt(shape):
    """Both halves have the pair's prompt and its other columns."""
    row, _ = PREFERENCES[shape]
    pair = to_preference(row)
    kept = {key: value for key, value in pair.items() if key not in ("chosen", "rejected")}
    good, bad = choose_converter(Format.unpaired, set(row), "data")(row)
    assert good == {**kept, "completion": pair["chosen"], "label": True}
    assert bad == {**kept, "completion": pair["rejected"], "label": False}


@pytest.mark.parametrize("defect", BAD)
def test_a_preference_that_cannot_be_used_has_no_halves_either(defect):
    row, kind, reason = BAD[defect]
    with pytest.raises(BadRow, match=re.escape(reason)) as error:
        pair_to_unpaired(row)
    assert error.value.reason is kind


def test_a_text_is_kept_as_it_is():
    assert to_text({"text": " one\n", "url": "x"}) == {"text": " one\n"}


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (None, Reason.missing_column, "missing"),
        (3, Reason.not_text, "`text` is not text but a"),
        (["a"], Reason.not_text, "`text` is not text but a"),
        ("", Reason.empty, "empty"),
        (" \n", Reason.empty, "empty"),
    ],
)
def test_a_text_that_cannot_be_used(value, kind, reason):
    with pytest.raises(BadRow, match=reason) as error:
        to_text({"text": value})
    assert error.value.reason is kind


# ---- a file of rows


@pytest.fixture
def loaded(composed, write_rows):
    """The rows that an experiment has when it reads these."""

    def make(rows: list[dict], *overrides: str):
        return load_rows(composed(["data=local", f"data.path={write_rows(rows)}", *overrides]))

    return make


def plain(number: int, **changes):
    return {"prompt": f"Q{number}", "chosen": "A", "rejected": "B"} | changes


def test_a_conversation_among_pairs_is_no_preference():
    """A conversation, then a pair: the converter is for pairs, and the conversation is a bad row."""
    rows = [{"messages": [user("Q"), assistant("A")]}, {"prompt": "Q", "chosen": "A", "rejected": "B"}]
    convert = choose_converter(Format.preference, filled_columns(rows), "data")
    assert convert(rows[1]) == [PAIR]
    with pytest.raises(BadRow):
        convert(rows[0])


@pytest.mark.parametrize(
    ("format", "shapes"),
    [
        (Format.conversation, [*CONVERSATIONS.values(), *PREFERENCES.values(), (BEGUN, None)]),
        (Format.unpaired, [*UNPAIRED.values(), *PREFERENCES.values()]),
        (Format.preference, PREFERENCES.values()),
        (Format.prompt, [*CONVERSATIONS.values(), *PREFERENCES.values()]),
    ],
)
def test_rows_of_every_shape_in_one_file_are_read_as_each_alone_and_read_back_as_they_are(format, shapes):
    rows = [row for row, _ in shapes]
    alone = [choose_converter(format, filled_columns([row]), "data")(row) for row in rows]
    assert list(map(choose_converter(format, filled_columns(rows), "data"), rows)) == alone
    converted = [row for made in alone for row in made]
    again = choose_converter(format, filled_columns(converted), "data")
    assert [again(row) for row in converted] == [[row] for row in converted]


@pytest.mark.parametrize("format", [Format.conversation, Format.unpaired, Format.prompt])
def test_half_a_pair_is_no_row_of_another_shape(format):
    half = {"prompt": "Q", "completion": "A", "label": True, "rejected": "B", "chosen": None}
    with pytest.raises(BadRow, match="`chosen` is missing"):
        choose_converter(format, set(half), "data")(half)


def test_rows_of_several_shapes_in_one_file(loaded):
    rows = [
        {"chosen": "\n\nHuman: Q1\n\nAssistant: A", "rejected": "\n\nHuman: Q1\n\nAssistant: B"},
        {"prompt": "Q2", "chosen": "A", "rejected": "B"},
        {"instruction": "Q3", "input": "", "chosen": "A", "rejected": "B"},
        {"question": "Q4", "chosen": "A", "rejected": "B"},
    ]
    splits = loaded(rows)
    prompts = sorted(row["prompt"][0]["content"] for row in splits.train + splits.heldout)
    assert prompts == ["Q1", "Q2", "Q3", "Q4"]
    assert not splits.dropped


def test_sft_trains_on_the_chosen_answer_of_pairs(loaded):
    splits = loaded([plain(number) for number in range(4)], "method=sft")
    assert all(
        row["messages"][-1] == assistant("A") and len(row["messages"]) == 2
        for row in splits.train + splits.heldout
    )


@pytest.mark.parametrize("bad_index", [0, 3])  # the first row, and a later one
def test_a_bad_row_stops_and_is_named(bad_index, loaded):
    rows = [plain(number, chosen=None if number == bad_index else "A") for number in range(6)]
    with pytest.raises(DataError) as error:
        loaded(rows)
    assert "1 of 6 rows cannot be used (" in str(error.value)
    assert f"rows.jsonl, line {bad_index + 1}: `chosen` is missing)" in str(error.value)
    assert str(error.value).endswith("leave them out with data.bad_rows=drop.")


def test_where_no_row_can_be_used_none_is_offered_to_be_left_out(loaded):
    with pytest.raises(DataError, match=r"6 of 6 rows cannot be used .* of them; fix them\.$"):
        loaded([plain(number, chosen=number) for number in range(6)])


@pytest.mark.parametrize(
    ("columns", "renamed"),
    [
        ({"Prompt", "Chosen", "Rejected"}, "Chosen to chosen, Prompt to prompt, Rejected to rejected"),
        ({"prompt", "choosen", "rejected"}, "choosen to chosen"),
        ({"prompt", "better", "worse"}, None),
    ],
)
def test_columns_of_nearly_the_right_names_are_told(columns, renamed):
    with pytest.raises(DataError) as error:
        choose_converter(Format.preference, columns, "rows.jsonl")
    _, _, told = str(error.value).partition("; rename ")
    assert told == (f"{renamed}." if renamed else "")


def test_of_many_bad_rows_the_first_three_are_named(loaded):
    with pytest.raises(DataError) as error:
        loaded([plain(number, rejected=None if number % 2 else "B") for number in range(10)])
    assert "5 of 10 rows cannot be used (" in str(error.value)
    assert all(f"line {number}: `rejected` is missing" in str(error.value) for number in (2, 4, 6))
    assert "line 8" not in str(error.value)


def test_bad_rows_are_dropped_and_counted_on_request(loaded):
    rows = [plain(number) for number in range(8)]
    rows += [
        plain(8, chosen=None),
        plain(9, chosen=None),
        plain(10, rejected=[user("B")]),
        plain(11, chosen=""),
        plain(12, chosen="B"),
    ]
    rows = [
        {**row, "rejected": [assistant("B")] if isinstance(row["rejected"], str) else row["rejected"]}
        for row in rows
    ]
    splits = loaded(rows, "data.bad_rows=drop")
    assert len(splits.train) + len(splits.heldout) == 8
    assert dict(splits.dropped) == {
        "`chosen` is missing": 2,
        "`rejected` does not end with the assistant's turn": 1,
        "`chosen` is empty": 1,
        "`chosen` equals `rejected`": 1,
    }


def test_uninformative_rows_are_dropped_and_counted_by_default(loaded):
    splits = loaded([plain(0), plain(1), plain(2, chosen=" "), plain(3, chosen="B")])
    assert len(splits.train) + len(splits.heldout) == 2
    assert dict(splits.dropped) == {"`chosen` is empty": 1, "`chosen` equals `rejected`": 1}


def test_a_file_without_a_usable_row_says_why(loaded):
    with pytest.raises(DataError, match=r"no row is left to train on \(3: `chosen` equals `rejected`\)"):
        loaded([plain(number, chosen="B") for number in range(3)])


@pytest.mark.parametrize(
    ("rows", "method", "columns", "required"),
    [
        ([{"text": "one", "label": True}], "dpo", "has the columns label, text;", "`chosen` and `rejected`"),
        ([{"text": "one"}], "sft", "has the columns text;", "`messages`"),
        (
            [{"prompt": "Q", "chosen": "A"}],
            "dpo",
            "has the columns chosen, prompt;",
            "`chosen` and `rejected`",
        ),
        (
            [{"prompt": "Q", "chosen": "A", "rejected": None}],
            "dpo",
            "has the columns chosen, prompt;",
            "`chosen` and `rejected`",
        ),
        (
            [{"instruction": "Q", "output": "A"}],
            "dpo",
            "has the columns instruction, output;",
            "`chosen` and `rejected`",
        ),
        ([{"prompt": "Q"}], "sft", "has the columns prompt;", "`instruction` and `output`"),
        (
            [{"prompt": "Q", "completion": "A"}],
            "kto",
            "has the columns completion, prompt;",
            "`label` with `prompt` and `completion`",
        ),
        (
            [{"prompt": "Q", "label": True}],
            "kto",
            "has the columns label, prompt;",
            "`label` with `prompt` and `completion`",
        ),
        (
            [{"messages": [], "label": None}],
            "kto",
            "has the columns messages;",
            "(preference pairs do as well: a good answer and a bad one)",
        ),
        (
            [{"prompt": "Q", "chosen": "A", "rejected": "B"}],
            "cpt",
            "has the columns chosen, prompt, rejected;",
            "needs `text`.",
        ),
        ([{"text": None}], "cpt", "has the columns (none);", "needs `text`."),
        (
            [{"prompt": "Q", "completion": "A", "label": True}],
            "reward",
            "has the columns completion, label, prompt;",
            "`rejected`",
        ),
    ],
)
def test_rows_without_a_usable_column_name_what_is_there_and_what_is_needed(
    rows, method, columns, required, loaded
):
    with pytest.raises(DataError) as error:
        loaded(rows, f"method={method}")
    assert columns in str(error.value) and required in str(error.value)
    assert str(error.value).startswith("data=local data.path=") and str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("row", "method"),
    [(plain(0), "dpo"), (CHAT, "sft"), (LABELED, "kto"), ({"text": "A"}, "cpt"), (plain(0), "sft")],
)
def test_rows_that_are_wrapped_in_one_object_are_told(row, method, loaded):
    with pytest.raises(DataError, match="has its rows wrapped in `data`, which is a list of them; save"):
        loaded([{"version": "1.0", "sets": [{"name": "a"}], "data": [row] * 4}], f"method={method}")


def test_every_format_has_its_sentence():
    assert set(REQUIRED_COLUMNS) == set(Format)
    for format in Format:
        with pytest.raises(
            DataError,
            match=re.escape(f"data: has the columns x; this method needs {REQUIRED_COLUMNS[format]}."),
        ):
            choose_converter(format, {"x"}, "data")


def test_of_a_pair_that_cannot_be_used_neither_half_is_kept(loaded):
    splits = loaded([plain(0), plain(1), plain(2, chosen=" "), plain(3, chosen="B")], "method=kto")
    assert len(splits.train) + len(splits.heldout) == 4
    assert dict(splits.dropped) == {"`chosen` is empty": 1, "`chosen` equals `rejected`": 1}


def test_texts_load(loaded):
    splits = loaded(
        [{"text": f"text {number}", "url": "x"} for number in range(20)] + [{"text": " ", "url": "x"}],
        "method=cpt",
    )
    assert sorted(row["text"] for row in splits.train + splits.heldout) == sorted(
        f"text {number}" for number in range(20)
    )
    assert len(splits.heldout) == 2
    assert dict(splits.dropped) == {"`text` is empty": 1}


def test_the_rejected_answer_is_chosen_by_the_settings(loaded):
    scored = [{"response": text, "overall_score": score} for score, text in enumerate("DCBA")]
    rows = [{"instruction": f"Q{number}", "completions": scored} for number in range(30)]

    def rejected(*overrides: str) -> set[str]:
        return {row["rejected"][0]["content"] for row in loaded(rows, *overrides).train}

    assert rejected() == {"D"}
    assert rejected("data.rejected=random") == {"B", "C", "D"}
