"""`action=preview`: what it shows is what training takes, and a row's text is text wherever it is shown."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import chain

import numpy
import pytest
from rich.console import Console
from small_runs import TEXTS

from alignment_lab import content, data
from alignment_lab.actions import run_action, tokenized
from alignment_lab.actions.plan import show_plan
from alignment_lab.actions.preview import compare_with_run, make_preview
from alignment_lab.actions.preview_lines import describe_missing
from alignment_lab.config import Format, to_yaml
from alignment_lab.config.no_effect import describe_no_effect
from alignment_lab.models.locate import locate_tokenizer
from alignment_lab.report.render.preview import Kind, show_preview, write_preview_page
from alignment_lab.report.render.preview.bins import to_bins
from alignment_lab.report.render.preview.parts import Run, Token
from alignment_lab.runtime import provenance
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.sweep.launchers.pool import PoolLauncher
from alignment_lab.sweep.preflight import CellCheck

TINY = ["model=tiny", "action=preview", "data=local"]
FAMILY = "👩‍👩‍👧"
SCRIPT = "<script>document.title='x'</script>"
HOSTILE = f"\x1b[2J\x1b]0;title\x07[red]no[/red] {SCRIPT} \x9b31m \u202e{FAMILY} שלום\r\n"


def pairs(count: int, words: int = 3) -> list[dict]:
    return [
        {"prompt": f"What is {number}?", "chosen": f"It is {number}. " * words, "rejected": "no " * words}
        for number in range(count)
    ]


@pytest.fixture
def preview(composed, write_rows, tokenizer, monkeypatch):
    """The preview of rows in a file; the tokenizer is loaded once for all of them."""
    monkeypatch.setattr(tokenized, "load_tokenizer", lambda *_: tokenizer)

    def make(rows, *overrides):
        spec = composed([*TINY, f"data.path={write_rows(rows)}", *overrides])
        return make_preview(spec, data.load_rows(spec), locate_tokenizer(spec.model))

    return make


@pytest.fixture
def printed():
    def show(made, width=120, color=None):
        file = io.StringIO()
        show_preview(made, Console(file=file, width=width, color_system=color, force_terminal=bool(color)))
        return file.getvalue()

    return show


def ids(part, *kinds):
    tokens = chain.from_iterable((*run.head, *run.tail) for run in part.runs if run.kind in kinds)
    return [token for each in tokens for token in each.ids]


# ---- what is shown is what training takes


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        ("dpo", 60), ("dpo", 512), ("kto", 60), ("sft", 60), ("cpt", 60),
        ("dpo data.truncation=prompt", 60), ("kto data.truncation=prompt", 60),
        ("sft data.truncation=prompt", 60),
    ],
)  # fmt: skip
def test_the_tokens_are_those_of_training(method, limit, preview, composed, write_rows, tokenizer):
    """Whatever is not cut is, token by token, the arrays; with the cut it is what a longer limit gives."""
    rows = [{"text": text} for text in TEXTS] if method == "cpt" else pairs(12, words=12)
    options = [*f"method={method}".split(), f"data.max_length={limit}", "preview.rows=50"]
    method = method.partition(" ")[0]
    made = preview(rows, *options)
    spec = composed([*TINY, f"data.path={write_rows(rows)}", *options])
    splits = data.load_rows(spec)
    kept, whole = (
        data.TOKENIZE[spec.method.format](tokenizer, splits.train, length, spec.data.truncation).rows
        for length in (limit, 10**6)
    )
    shown = [[*row.parts, *row.beside] for row in made.rows]
    not_cut = [list(chain.from_iterable(ids(part, Kind.seen, Kind.trained) for part in row)) for row in shown]
    columns = ("prompt_ids", "completion_ids", "chosen_ids", "rejected_ids", "input_ids")
    flat = [list(chain.from_iterable(row.get(column, ()) for column in columns)) for row in kept]
    assert not_cut == flat
    trained = [ids(part, Kind.trained) for row in shown for part in row]
    if method == "sft":
        assert trained == [[token for token in row["labels"] if token >= 0] for row in kept]
    elif method == "cpt":
        assert all(run.count == 1 for row in shown for part in row for run in part.runs[:1])
    else:
        assert sum(map(len, trained)) == sum(len(row.get(name, ())) for row in kept for name in columns[1:4])
    if method != "cpt":
        everything = [list(chain.from_iterable(ids(part, *Kind) for part in row)) for row in shown]
        assert everything == [[i for column in columns for i in row.get(column, ())] for row in whole]
        assert any(part.count(Kind.cut) for row in shown for part in row) == (limit == 60)


def test_texts_of_tokens_join_to_the_text(preview, tokenizer):
    """Spaces, and characters of several tokens; those that only together make one stand together."""
    said = f"  Ünïcode {FAMILY} 漢字\tשלום \U0001f9ff x\u00a0y "
    (row,) = preview(
        [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]}] * 3
        + pairs(0),
        "method=sft",
        "preview.rows=1",
    ).rows
    tokens = [token for run in row.parts[0].runs for token in (*run.head, *run.tail)]
    assert said.strip() in "".join(token.text for token in tokens)
    assert "\ufffd" not in "".join(token.text for token in tokens)
    assert any(len(token.ids) > 1 for token in tokens)
    assert [token.text for token in tokens if token.special] == tokenizer.convert_ids_to_tokens(
        [token.ids[0] for token in tokens if token.special]
    )


def test_the_template_is_told_apart_from_what_it_surrounds(preview):
    adds = preview(pairs(8)).template
    texts = {name: "".join(token.text for token in tokens) for name, tokens in adds.items()}
    assert texts["before a question"].endswith("<|im_start|>user\n")
    assert texts["between it and the answer"] == "<|im_end|>\n<|im_start|>assistant\n"
    assert texts["at the answer's end, trained"] == "<|im_end|>"


# ---- which rows


def test_rows_that_are_asked_for(preview):
    rows = pairs(20)
    assert len(preview(rows, "preview.rows=3").rows) == 3
    cut = preview([*pairs(19), pairs(30, words=40)[29]], "preview.rows=1", "data.max_length=90")
    assert len(cut.rows) in (1, 2) and any(part.count(Kind.cut) for row in cut.rows for part in row.beside)
    assert "held-out" in preview(rows, "preview.heldout=true").rows[0].place
    with pytest.raises(
        UserError, match=r"^preview\.lines=\[900\]: line 900: no row is there \(.* ends with line 20\)"
    ):
        preview(rows, "preview.lines=[900]")


def test_options_out_of_range(error_message):
    assert error_message("preview.rows=-1").startswith("preview.rows=-1: must be 0 or more")
    assert error_message("preview.lines=[0]").startswith("preview.lines=[0]: lines are counted from 1")


def test_options_of_another_action_have_no_effect(composed):
    told = describe_no_effect(composed(["preview.rows=9", "plan.device=h100"]))
    assert "preview.rows=9 (action=train)" in told and "plan.device=h100 (action=train)" in told
    assert "preview" not in describe_no_effect(composed(["preview.rows=9", "action=preview"]))


@pytest.mark.parametrize("action", ["plan", "preview"])
def test_a_pool_of_cells_that_do_not_train_is_refused(action, composed):
    check = CellCheck(PoolLauncher, None)
    (sentence,) = check(composed([f"action={action}"]))
    assert (
        sentence == f"action={action}: a launcher of the lab runs cells that train; leave hydra/launcher out."
    )


# ---- a row's text is text


@pytest.mark.parametrize("color", [None, "truecolor"])
def test_nothing_of_a_row_acts_on_a_terminal(color, preview, printed):
    made = preview([{**row, "chosen": row["chosen"] + HOSTILE} for row in pairs(6)], "method=dpo")
    output = printed(made, color=color)
    assert not re.search(r"[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e]", output)
    sequences = re.findall(r"\x1b.{0,2}", output)
    assert all(re.match(r"\x1b\[[\d]", each) for each in sequences), "rich's own colors alone"
    plain = re.sub(r"\x1b\[[\d;]*m|│", "", output)
    assert (
        "[red]" in plain and "␛[2J" in plain and "⟨U+202E⟩" in plain and FAMILY in plain and "שלום" in plain
    )


def test_nothing_of_a_row_is_markup_on_the_page(preview, tmp_path):
    made = preview([{**row, "chosen": row["chosen"] + HOSTILE} for row in pairs(6)], "name='<b>x<b>'")
    page = write_preview_page(made, tmp_path / "preview.html").read_text()
    assert "<script" not in page and "<b>" not in page and "\x1b" not in page
    assert "http" not in re.sub(r'data-id="[^"]*"', "", page.replace("https://", "http://").split("<body")[0])


def test_a_row_of_100000_tokens_is_shortened_with_a_count(preview, printed, tmp_path):
    rows = [{**row, "chosen": "word " * 100_000} for row in pairs(3)]
    made = preview(rows, "data.max_length=200000", "preview.rows=1")
    assert made.rows[0].beside[0].count(Kind.trained) > 100_000
    assert len(printed(made)) < 20_000 and re.search(r"… 99,\d{3} more …", printed(made))
    assert write_preview_page(made, tmp_path / "preview.html").stat().st_size < 200_000


@pytest.mark.parametrize("size", [1, 5, 160, 161, 162, 999])
def test_a_clipped_run_counts_all_of_its_tokens(size):
    run = Run(Kind.trained, tuple(Token("a", (1, 2)) for _ in range(size)))
    clipped = run.clipped(120, 40)
    assert clipped.count == run.count == 2 * size
    assert len(clipped.head) + len(clipped.tail) == min(size, 161 if size == 161 else 160)


@pytest.mark.parametrize("lengths", [[], [0], [7], [0, 1, 39, 40], [5, 1_234_567], list(range(1000))])
def test_bins_hold_every_length(lengths):
    bins = to_bins(lengths, 40)
    assert sum(bins.counts) == len(lengths) and len(bins.counts) <= 41
    assert str(bins.width).lstrip("0")[0] in "125"


# ---- the run directory


def test_it_writes_its_page_and_the_directory_can_be_trained_in(composed, write_rows, tmp_path, capsys):
    run, folder = RunDirectory(tmp_path / "run"), tmp_path / "rows"
    folder.mkdir()
    for split in ("train", "test"):
        write_rows(pairs(8)).rename(folder / f"{split}.jsonl")
    spec = composed([*TINY, f"data.path={folder}", "preview.rows=1"])
    run.path.mkdir()
    run.preview_file.write_text("mine")
    run_action(spec, run)
    printed = capsys.readouterr().out.replace("\n", "")
    assert f"Page: {run.preview_file}" in printed and "not read: test; hold one out" in printed
    assert sorted(file.name for file in run.path.iterdir()) == ["preview.html", "preview.html.set-aside0"]
    (run.path / "preview.html.set-aside0").unlink()
    run.require_own()


def test_rows_that_a_run_did_not_train_on_are_told_as_such(composed, write_rows, tmp_path, capsys):
    """Its directory stays as it is: a page there would be taken for what it trained on."""
    run = RunDirectory(tmp_path / "run")
    spec = composed([*TINY, f"data.path={write_rows(pairs(8))}", "preview.rows=0"])
    splits = data.load_rows(spec)
    run.start_attempt(run_id=spec.run_id, spec=to_yaml(spec))
    provenance.record_attempt(run.provenance_file, 1, 0)
    files = content.read_files(spec, None)
    recorded = {"content": {"data": splits.digest}, "files": files, "rows": splits.read}
    provenance.record_content(run.provenance_file, recorded, first_step=True)
    assert compare_with_run(spec, run, splits) is None
    write_rows(pairs(9))
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}
    run_action(spec, run)
    printed = capsys.readouterr().out
    assert "8 rows before, 9 now" in printed and "not the rows that this run trained on" in printed
    other = compare_with_run(composed([*TINY, "method=sft", f"data.path={spec.data.path}"]), run, splits)
    assert other and "method.name is dpo there and sft here" in other
    assert {file: file.stat().st_mtime_ns for file in run.path.rglob("*")} == before


# ---- where rows come from, and where they went


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_every_row_that_is_not_shown_has_its_reason(method, composed, write_rows, tokenizer, monkeypatch):
    """Line by line, of a source that is filtered and taken in part, beside one with rows on these lines."""
    monkeypatch.setattr(tokenized, "load_tokenizer", lambda *_: tokenizer)
    rows = [{**row, "odd": number % 5 == 0} for number, row in enumerate(pairs(40), start=1)]
    rows[10]["chosen"] = rows[10]["rejected"]
    rows[11]["prompt"] *= 300
    others = [{**row, "prompt": f"Or {row['prompt']}"} for row in pairs(6)]
    sources = {"ours": write_rows(rows, "ours.jsonl"), "theirs": write_rows(others, "theirs.jsonl")}
    spec = composed([
        "model=tiny", "action=preview", "data=mixture", f"method={method}", "data.max_length=100",
        *(f"+data/source@data.sources.{name}=local" for name in sources),
        *(f"data.sources.{name}.path={path}" for name, path in sources.items()),
        "+data.sources.ours.filter.odd=false", "+data.sources.ours.fraction=0.5", "preview.source=ours",
        "data.eval_fraction=0.2", "training.max_steps=1", "training.global_batch=8", "eval.rows=2",
        "eval.generations=1",
    ])  # fmt: skip
    splits = data.load_rows(spec)
    tokens = tokenized.tokenize(spec, splits, locate_tokenizer(spec.model), Console(quiet=True))
    sides = {"held": splits.heldout, "train": splits.train, "shown": tokens.train.converted}
    lines = {
        side: {int(line) for line in rows.numbers("line")[rows.numbers("table") == 0]}
        for side, rows in sides.items()
    }
    shown = {f"{sources['ours']}:{line}" for line in lines["shown"]}

    def reason(line: int, heldout: bool = False) -> str:
        asked = replace(spec, preview=replace(spec.preview, lines=[line], heldout=heldout))
        found = describe_missing(asked, splits, tokens.counts, set() if heldout else shown)
        assert len(found) <= 1 and all(
            clause.startswith((f"{sources['ours']}:{line}: ", "line 41: ")) for clause in found
        )
        return "".join(found)

    for line in range(1, 42):
        told = reason(line)
        if line in lines["shown"]:
            assert not told
        elif line == 41:
            assert "no row is there" in told and "ours.jsonl ends with line 40" in told
        elif line % 5 == 0:
            assert "filter" in told
        elif line == 11:
            assert "`chosen` equals `rejected`" in told
        elif line in lines["held"]:
            assert "preview.heldout=true" in told
            assert "eval.rows=2 and eval.generations=1 take 2 of" in reason(line, heldout=True)
        elif line not in lines["train"]:
            assert "the mixture does not take it" in told
        elif "fills data.max_length" not in told:
            assert line != 12 and "training rows that training.max_steps=1, each of 8 rows" in told
    assert all(map(len, lines.values())) and len(lines["train"]) > len(lines["shown"])


def test_rows_of_a_mixture_are_told_by_source_file_and_line(composed, write_rows, tokenizer, monkeypatch):
    """Sources take turns; what was left out is shown with its place, and what nothing takes is named."""
    monkeypatch.setattr(tokenized, "load_tokenizer", lambda *_: tokenizer)
    good = [{**row, "id": number} for number, row in enumerate(pairs(40))]
    files = {
        "ours": write_rows([*good[:20], {"prompt": "?", "chosen": 5, "rejected": "no"}], "ours.jsonl"),
        "theirs": write_rows(
            [
                *({**row, "prompt": row["prompt"] + " Or?"} for row in good[20:]),
                {"prompt": "Why? " * 600, "chosen": "So.", "rejected": "No."},
            ],
            "theirs.jsonl",
        ),
    }
    sources = [f"+data/source@data.sources.{name}=local" for name in files]
    paths = [f"data.sources.{name}.path={path}" for name, path in files.items()]
    mixture = ["model=tiny", "action=preview", "data=mixture", "data.bad_rows=drop", *sources, *paths]

    def make(*overrides):
        spec = composed([*mixture, *overrides])
        splits = data.load_rows(spec)
        made = make_preview(spec, splits, locate_tokenizer(spec.model))
        assert [line["source"] for line in data.bad_rows(spec.data, splits.quarantine)] == ["ours", "theirs"]
        return made

    made = make("preview.rows=4")
    assert ["ours" in row.place for row in made.rows] == [True, False, True, False]
    for row in made.rows:
        name, line = re.search(r"(ours|theirs)\.jsonl:(\d+)$", row.place).groups()
        number = int(line) - 1 + 20 * (name == "theirs")
        text = "".join(token.text for run in row.parts[0].runs for token in run.head)
        assert f"What is {number}?" in text
    table = made.tables[0]
    ours, theirs, total = (dict(zip(table.headings, cells, strict=True)) for cells in table.rows)
    assert [cells["source"] for cells in (ours, theirs, total)] == ["ours", "theirs", "total"]
    assert int(ours["answers"]) == 2 * int(ours["to train on"]) and total["answers"] == "72"
    splits = data.load_rows(composed(mixture))
    for number, cells in enumerate((ours, theirs)):
        own = splits.train.select(numpy.flatnonzero(splits.train.numbers("table") == number))
        rows = data.TOKENIZE[Format.preference](tokenizer, own, 1024).rows
        assert cells["tokens"] == f"{sum(map(data.count_tokens, rows)):,}"
    places = {left_out.examples[0].partition(":")[0] for left_out in made.left_out if left_out.count == 1}
    assert places == {f"{files['ours']}, line 21", f"{files['theirs']}, line 21"}
    assert "ours: not used: id" in made.notes
    place = made.rows[1].place
    (again,) = make("preview.source=theirs", f"preview.lines=[{place.rpartition(':')[2]}]").rows
    assert again == made.rows[1]
    with pytest.raises(UserError, match=r"^preview\.source=x: no such source; give one of ours, theirs\.$"):
        make("preview.source=x")


def test_the_numbers_of_a_table_agree_whether_pairs_are_split_or_not(preview):
    """Counted are rows as they were read; answers, sequences and blocks are named."""
    rows = [*pairs(40), {"prompt": "Why? " * 600, "chosen": "So.", "rejected": "No."}] * 2
    found = {}
    for method in ("dpo", "kto"):
        made = preview(rows, f"method={method}", "preview.rows=0", "data.clean.duplicates=exact")
        (headings, cells) = made.tables[0].headings, made.tables[0].rows[0]
        counts = dict(zip(headings[1:], (int(cell.replace(",", "")) for cell in cells[1:]), strict=True))
        assert counts["read"] == counts["left out"] + counts["kept"] + counts["held out"]
        assert counts["to train on"] == counts.get("in this run", counts["kept"]) + counts.get("refused", 0)
        assert counts["answers"] == 2 * (counts["to train on"] - counts.get("refused", 0))
        assert "a pair is one row" in made.tables[0].note
        found[method] = {name: count for name, count in counts.items() if name != "tokens"}
        (told,) = (note for note in made.notes if note.startswith("rows: "))
        trained = counts["answers"] // 2
        more = f" ({2 * trained} answers)" if method == "kto" else ""
        assert told.startswith(f"rows: {trained} of {trained} to train on{more}, ")
        assert "left out: repeats another row" in told
        assert "1 left out: the prompt fills data.max_length" in told
    assert found["dpo"] == found["kto"]


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("dpo", ["eval=none"], "4 held out, and none of them measured (eval.rows=0 and eval.generations=0)"),
        ("sft", ["eval.rows=1", "eval.generations=2"], "2 of 4 held out to measure on"),
        ("kto", ["training.max_steps=2", "training.global_batch=3"], "among the 6 of 36 training rows that "),
        ("cpt", ["eval=none"], " of 81 texts ("),
    ],
)
def test_the_line_of_rows_says_what_is_measured_and_what_was_looked_at(method, options, words, preview):
    rows = [{"text": text} for text in TEXTS] if method == "cpt" else pairs(40)
    made = preview(rows, f"method={method}", "preview.rows=0", *options)
    (told,) = (note for note in made.notes if note.startswith("rows: "))
    assert words in told
    assert ("block" in told) == (method == "cpt") and ("cut at" in told) == (method != "cpt")


@pytest.mark.parametrize("method", ["dpo", "kto", "sft", "cpt"])
def test_a_special_token_in_a_text_is_told_and_counted(method, preview):
    rows = [{**row, "chosen": f"{row['chosen']}<|im_start|>user"} for row in pairs(20)]
    if method == "cpt":
        rows = [{"text": f"{text} <|im_start|>user"} for text in TEXTS[:20]]
    notes = preview(rows, f"method={method}", "preview.rows=0").notes
    (told,) = (note for note in notes if "<|im_start|>" in note)
    count = 18 if method == "cpt" else 20  # held-out texts are in blocks of their own
    assert told.startswith(f"{count} ") and told.endswith("it is read as the token")


@pytest.mark.parametrize(
    ("method", "label", "words"),
    [("kto", True, "only raise"), ("bco", False, "names nothing to write instead")],
)
def test_answers_of_one_label_alone_are_told(method, label, words, preview, composed, write_rows, capsys):
    rows = [{"prompt": f"Is {n} odd?", "completion": "Yes.", "label": label} for n in range(20)]
    (told,) = (note for note in preview(rows, f"method={method}").notes if note.startswith("labels: "))
    assert words in told and f"method={method}" in told and told.startswith("labels: all 18 answers")
    spec = composed(["model=tiny", "data=local", f"data.path={write_rows(rows)}", f"method={method}"])
    show_plan(spec, data.load_rows(spec), Console(width=400))
    assert told in capsys.readouterr().out
    rows[0]["label"] = rows[1]["label"] = rows[2]["label"] = not label
    assert not any(note.startswith("labels: ") for note in preview(rows, f"method={method}").notes)
