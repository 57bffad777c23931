"""A talk: what is said, what is kept of it, how it ends; over a pipe, on a terminal, through an endpoint."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from small_saves import finished_run, tiny_model, trained_adapter
from small_tokenizers import other_tokenizer
from transformers import LlamaForCausalLM

from alignment_lab import data
from alignment_lab.chat import __main__ as chat
from alignment_lab.chat import endpoint
from alignment_lab.chat.answer import AnswerStream
from alignment_lab.chat.screen import Pipe
from alignment_lab.chat.session import Session, messages
from alignment_lab.chat.settings import ChatSettings, read_words
from alignment_lab.chat.speaker import load_speakers
from alignment_lab.chat.talk import Answer, SavedTalks, Talk, Turn
from alignment_lab.chat.wrapping import WordWrap
from alignment_lab.config import Shape
from alignment_lab.data.templates import encode_prompts, stop_token_ids
from alignment_lab.engine.generation import Sampling, generate
from alignment_lab.models.locate import llama_config
from alignment_lab.runtime.errors import UserError

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("parallel.device=cpu", "model.dtype=float32", "max_new_tokens=6")
TEXTS = ["It is Paris.", "  two\n\nlines \t", "naïve 日本語 😀👩‍👩‍👧 end", "", " \n ", "a  b   c", "x" * 40]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two folders with models of random weights and a small tokenizer."""
    tokenizer = other_tokenizer("chatml", bos="<|im_start|>", eos="<|im_end|>")
    folders = []
    for seed, name in enumerate(("first", "second")):
        folder = tmp_path_factory.mktemp("models") / name
        torch.manual_seed(seed)
        shape = Shape(2, 64, 128, 4, 2, 16, vocabulary=len(tokenizer), tied=False)
        LlamaForCausalLM(llama_config(shape, initializer_range=0.2)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(str(folder))
    return folders


@pytest.fixture(scope="module")
def speakers(models):
    return load_speakers(read_words([*models, *SETTINGS]), None)


@pytest.fixture
def talk(monkeypatch, capsys):
    """`talk("hello\\n", MODEL, "seed=1")`: (exit code, what was answered, what was told) over a pipe."""

    def run(lines: str, *words: str) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = chat.main([*words, *SETTINGS])
        shown = capsys.readouterr()
        return code, shown.out, shown.err.splitlines()

    return run


def expected(speaker, prompt: list[dict], **sampling) -> str:
    """What `generate` answers to this prompt."""
    ids = encode_prompts(speaker.tokenizer, [{"prompt": prompt}])
    ((answer,),) = generate(
        speaker.model,
        ids,
        Sampling(6, **sampling),
        stop_ids=speaker.stop_ids,
        max_tokens=1000,
        device=CPU,
        dtype=torch.float32,
    )
    return speaker.tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()


def user(text: str) -> dict:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_an_answer_are_the_answer(any_tokenizer, text):
    """Decoded at once, whatever bytes a token ends within; no piece breaks a character that comes whole."""
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    stop = stop_token_ids(any_tokenizer)[0]
    for tokens, finished in (([*ids, stop, *ids], True), (ids, False)):
        stream = AnswerStream(tokens, any_tokenizer, [stop])
        pieces = list(stream)
        whole = any_tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(pieces) == stream.text == whole.strip()
        assert (stream.finished, stream.stopped, stream.count) == (finished, False, len(ids))
        assert not any("\ufffd" in piece for piece in pieces)
    asked = iter([True, True, False])
    stream = AnswerStream(ids * 9, any_tokenizer, [stop], lambda: next(asked))
    list(stream)
    assert (stream.stopped, stream.finished) == (bool(ids), False) and stream.count == min(2, 9 * len(ids))


def test_each_turn_goes_on_from_the_answers_before_and_is_what_evaluation_generates(
    talk, models, speakers, capsys
):
    """Over a pipe the answers alone are printed. Each of two models goes on from its own."""
    lines = 'What is it?\n\n"""\none\n\ntwo\n"""\n//x\n'
    settings = ("temperature=0.8", "top_p=0.9", "seed=3", "system=Be it so.")
    said: list[list[dict]] = [[{"role": "system", "content": "Be it so."}] for _ in models]
    answers: list[list[str]] = [[], []]
    for message in ("What is it?", "one\n\ntwo", "/x"):
        for each, speaker, own in zip(answers, speakers, said, strict=True):
            own.append(user(message))
            each.append(expected(speaker, own, temperature=0.8, top_p=0.9, seed=3))
            own.append({"role": "assistant", "content": each[-1]})
    one = ChatSettings(0.8, 0.9, 6, 3)
    Session(speakers[:1], one, "Be it so.", Pipe(), interactive=False).run(lines.splitlines())
    shown = capsys.readouterr()
    assert shown.out == "".join(f"{answer}\n" for answer in answers[0])
    assert all(
        re.fullmatch(r".*: (cut at max_new_tokens=6|an empty answer)", line)
        for line in shown.err.splitlines()
    )
    code, out, _ = talk(lines, *models, *settings)
    both = zip(*answers, strict=True)
    assert (code, out) == (
        0,
        "".join(f"[{name}]\n{answer}\n" for turn in both for name, answer in zip(models, turn, strict=True)),
    )


def test_a_run_answers_with_its_adapter_and_its_rows_system_prompt(
    composed, models, speakers, tmp_path, capsys
):
    """A reward model does not answer at all."""
    ids = torch.tensor([list(range(9))])
    adapted = trained_adapter(Path(models[0]), tmp_path / "adapter")
    spec = composed(["model=hub", f"model.path={models[0]}", "parallel=lora", "parallel.device=cpu"])
    run = finished_run(tmp_path / "run", spec, tmp_path / "adapter", speakers[0].tokenizer)
    (speaker,) = load_speakers(read_words([str(run.path), *SETTINGS]), None)
    torch.testing.assert_close(speaker.model(ids).logits, adapted(ids).logits)
    assert "an adapter on its base" in speaker.description
    for systems, shared in ((["Be brief."] * 2, "Be brief."), (["Be brief.", "Be kind."], None)):
        prompts = [[{"role": "system", "content": system}, user("What is it?")] for system in systems]
        run.write_samples([{"prompt": prompt} for prompt in prompts])
        assert speaker.system == shared
    scores = tiny_model(tmp_path / "scores", score_head=True)
    assert chat.main([str(scores)]) == 2
    assert "is a reward model, which scores answers and writes none" in capsys.readouterr().err


def test_commands_change_the_talk_and_save_it(talk, models, tmp_path):
    """/undo takes back, /reset begins anew; each talk with each model is a row, and one that is saved again
    is replaced. A file that was there before stays.
    """
    file = tmp_path / "new" / "talk.jsonl"
    lines = f"""/system Be it so.\nfirst\nsecond\n/save {file}\n/undo\nthird\n/save {file}
/reset\n/set max_new_tokens=2\nanew\n/save {file}\n/quit\nnever\n"""
    code, _, told = talk(lines, *models)
    assert code == 0
    assert {"taken back: second", f"{file}: 4 rows; data=local data.path={file} reads it"} < set(told)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["model"] for row in rows] == models * 2
    asked = [[each["content"] for each in row["messages"] if each["role"] == "user"] for row in rows]
    assert asked == [["first", "third"]] * 2 + [["anew"]] * 2
    assert all(row["messages"][0] == {"role": "system", "content": "Be it so."} for row in rows)
    code, _, told = talk(f"first\n/save {file}\nnever\n", models[0])
    sentence = f"/save {file}: is there already, and would be written over; give another file."
    assert (code, told[-1]) == (2, f"error: {sentence}")
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows


def test_a_saved_talk_is_read_as_data_and_an_unfinished_answer_is_no_target(composed, tmp_path):
    saved, file = SavedTalks(), tmp_path / "talk.jsonl"
    for number in range(4):
        turns = [Turn(f"question {number}", [Answer("cut", False)]), Turn("And?", [Answer("whole", True)])]
        saved.save(Talk(None, turns), ["a model"], file)
    local = ["data=local", f"data.path={file}", "data.eval_fraction=0.25"]
    splits = data.load_rows(composed(["method=sft", "model=tiny", *local]))
    read = [row["messages"] for row in [*splits.train, *splits.heldout]]
    assert sorted(messages[0]["content"] for messages in read) == [
        f"question {number}" for number in range(4)
    ]
    for _, cut, _, whole in read:
        assert (cut["content"], cut["train"], whole) == (
            "cut",
            False,
            {"role": "assistant", "content": "whole"},
        )


MISTAKES = {
    "no model": (["temperature=1"], "no model is named; give a run"),
    "an empty name": ([""], "a model's name is empty"),
    "three": (["tiny", "embedded", "gpt2"], "a talk is with 2 models at most, and these are 3"),
    "twice": (["tiny", "tiny"], "tiny is there twice"),
    "no such folder": (["./nowhere"], "model=./nowhere: no such directory"),
    "a key": (["tiny", "temprature=1"], "temprature=1: no such setting; did you mean temperature?"),
    "no number": (["tiny", "top_p=high"], "top_p=high: must be a number."),
    "out of range": (["tiny", "top_p=0"], "top_p=0.0: must be above 0 and at most 1."),
    "not finite": (["tiny", "temperature=nan"], "temperature=nan: must be 0 or more; 0 is greedy."),
    "a whole number": (["tiny", "seed=1.5"], "seed=1.5: must be a whole number."),
    "of the experiment": (["tiny", "model.dtype=half"], "model.dtype=half: give one of"),
    "a port alone": (["tiny", "port=80"], "port=80: is about the endpoint; add --serve"),
    "two to serve": (["tiny", "gpt2", "--serve"], "--serve offers one model, and these are 2"),
    "a system to serve": (["tiny", "--serve", "system=x"], "system: a client of the endpoint says it"),
    "a host": (["tiny", "--serve", "host=nowhere.invalid"], "host=nowhere.invalid port=8000: cannot be"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name, capsys):
    words, sentence = MISTAKES[name]
    assert chat.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"error: {sentence}") and shown.err.count("\n") == 1


def test_a_mistake_is_answered_without_torch(run_command):
    ended = run_command("./nowhere", script=["-m", "alignment_lab.chat"], PYTHONPATH=str(ROOT))
    assert ended.code == 2 and not {"torch", "transformers"} & ended.imported


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/sve x", "/sve: no such command; did you mean /save?"),
        ("/undo", "/undo: nothing was said yet."),
        ("/save", "/save: say where to: /save talk.jsonl"),
        ("/save x.jsonl", "/save x.jsonl: nothing was said yet; ask something first."),
        ("/set temperature", "/set temperature: give key=value, with a key of temperature"),
        ("/set port=1", "port=1: no such setting"),
    ],
)
def test_a_wrong_command_says_why_and_ends_a_pipe_but_no_talk_at_a_terminal(speakers, line, sentence, capsys):
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        Session(speakers, ChatSettings(), None, Pipe(), interactive=False).run([line, "never"])
    session = Session(speakers, ChatSettings(), None, Pipe(), interactive=True)
    session.run([line, "/quit", "never"])
    assert session.is_over and f"error: {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize("width", [1, 7, 20])
@pytest.mark.parametrize("text", [*TEXTS, "one two, three\tfour\n\n  five " + "six" * 9, "日本語" * 9 + " a"])
def test_lines_are_broken_between_words_and_nothing_is_lost(text, width):
    """Whatever the pieces; a word that is longer than a line is broken where the line ends."""
    pieces = re.findall("(?s).{1,3}", text)
    wrap = WordWrap(width)
    shown = "".join(map(wrap.feed, pieces)) + wrap.flush()
    assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", text)
    wide = [line for line in shown.expandtabs(8).split("\n") if cell_len(line.rstrip()) > max(width, 2)]
    assert all("\u200d" in line or "\t" in text for line in wide)
    if width == 20 and "\t" not in text:
        words = [word for word in text.split() if word.isascii() and len(word) <= width]
        assert all(word in shown.split() for word in words)


def test_a_message_of_several_lines():
    lines = ["a\n", "  \n", '"""b\n', "\n", "  c \n", '"""\n', '"""d"""\n', '"""e\r\n', "f"]
    assert list(messages(lines)) == ["a", "b\n\n  c ", "d", "e\nf"]


def test_the_endpoint_answers_for_its_model_alone(models, speakers):
    """Through transformers' own server: the tokens that the talk would give, streamed or not; no other model
    is loaded, and this one is not thrown away.
    """
    from starlette.testclient import TestClient

    speaker = speakers[0]
    endpoint.set_defaults(speaker, ChatSettings(temperature=0))
    answer = expected(speaker, [user("What is it?")])
    request = {"model": models[0], "messages": [user("What is it?")], "max_tokens": 6}
    with TestClient(endpoint.build_app(speaker)) as client:
        found = client.post("/v1/chat/completions", json=request).json()
        assert found["choices"][0]["message"]["content"].strip() == answer
        lines = client.post("/v1/chat/completions", json={**request, "stream": True}).text.splitlines()
        parts = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        streamed = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts)
        assert streamed.strip() == answer
        sampled = [
            client.post("/v1/chat/completions", json={**request, "temperature": 1.5, "seed": seed}).json()
            for seed in (1, 2)
        ]
        assert len({each["choices"][0]["message"]["content"] for each in [found, *sampled]}) == 3
        assert client.post("/v1/chat/completions", json={**request, "model": models[1]}).status_code == 400
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == [models[0]]
        for path in ("/load_model", "/reset"):
            assert client.post(path, json={"model": models[1]}).status_code == 404


COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class TerminalTalk:
    """The command on a terminal of its own, 100 characters wide."""

    def __init__(self, folder: Path, *words: str) -> None:
        command = [sys.executable, "-m", "alignment_lab.chat", *words]
        environment = os.environ | {
            "TERM": "xterm",
            "COLUMNS": "100",
            "LINES": "30",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, environment)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, text: str, seconds: float = 90) -> None:
        """Read until this pattern is shown, after what was waited for before."""
        end = time.monotonic() + seconds
        while not (found := re.search(text, COLOURS.sub("", self.seen))):
            assert time.monotonic() < end and select.select([self.terminal], [], [], seconds)[0], self.seen
            self.seen += os.read(self.terminal, 4096).decode(errors="replace")
        self.seen = COLOURS.sub("", self.seen)[found.end() :]

    def exit_code(self) -> int:
        """Wait until it has ended."""
        with contextlib.suppress(OSError):  # nobody is on the other side any more
            while select.select([self.terminal], [], [], 60)[0]:
                os.read(self.terminal, 4096)
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_ctrl_d_or_a_second_ctrl_c_ends_the_talk(models, tmp_path):
    """Two columns on a terminal; what was said until then stays, and a mistake ends nothing."""
    file = tmp_path / "talk.jsonl"
    folder = Path(models[0]).parents[1]
    names = [str(Path(model).relative_to(folder)) for model in models]
    talk = TerminalTalk(folder, *names, *SETTINGS[:2], "max_new_tokens=1900", "temperature=1.5")
    talk.wait_for("> ")
    talk.type("What is it?\r")
    talk.wait_for(r"second\s+[^\s>]")  # the beginning of an answer
    talk.type("\x03")
    talk.wait_for("; stopped")
    talk.wait_for("> ")
    talk.type("/sav\r")
    talk.wait_for(r"did you mean /save\?")
    talk.wait_for("> ")
    talk.type(f"/sa\t {file}\r")  # completed
    talk.wait_for("2 rows")
    talk.wait_for("> ")
    talk.type("half a line\x03")
    talk.wait_for("Ctrl-C again ends the talk")
    talk.wait_for("> ")
    talk.type("\x04")
    assert talk.exit_code() == 0
    (question, answer) = json.loads(file.read_text().splitlines()[0])["messages"]
    assert (question["content"], answer["weight"]) == ("What is it?", 0) and answer["content"]

    talk = TerminalTalk(folder, names[0], *SETTINGS)
    talk.wait_for("> ")
    talk.type("\x03")
    talk.wait_for("Ctrl-C again ends the talk")
    talk.wait_for("> ")
    talk.type("\x03")
    assert talk.exit_code() == 130


@pytest.mark.slow
def test_a_reader_that_goes_ends_the_talk(models, tmp_path):
    file = tmp_path / "messages"
    file.write_text("What is it?\n" * 10_000)  # answers for hours
    command = [sys.executable, "-m", "alignment_lab.chat", models[0], *SETTINGS]
    pipe = subprocess.PIPE
    with file.open() as lines, subprocess.Popen(command, stdin=lines, stdout=pipe, stderr=pipe) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
        assert b"Traceback" not in process.stderr.read()
