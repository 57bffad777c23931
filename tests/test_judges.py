"""Judges and their trial: a server that misbehaves, judges of known vices, local models by hand."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from alignment_lab.config import JudgeKind, WinrateMeasure
from alignment_lab.evaluation import trial as trials
from alignment_lab.evaluation.judges import endpoint as endpoints
from alignment_lab.evaluation.judges.endpoint import EndpointJudge
from alignment_lab.evaluation.judges.rubric import RUBRIC, judge_messages, read_verdict
from alignment_lab.evaluation.judges.verdicts import Pair, ask
from alignment_lab.evaluation.trial import LIMITS, build_cases, own_cases, try_family, try_judge
from alignment_lab.runtime.errors import UserError

KEY = "key-of-nobody-0123456789"
QUESTION = ({"role": "user", "content": "Which sea is salty?"},)
PAIRS = [Pair(QUESTION, f"Sea {number} is.", f"No, lake {number} is.") for number in range(6)]
Said = Callable[[dict[str, Any], int], tuple[int, Any]]  # body and number of the request -> status, reply


class Server:
    """A real server on this machine, which answers as `say` decides; it remembers what it was sent."""

    def __init__(self, say: Said) -> None:
        self.requests: list[tuple[dict[str, Any], str | None]] = []
        self.waiting = self.most_waiting = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append((body, self.headers.get("Authorization")))
                    number = len(outer.requests)
                    outer.waiting += 1
                    outer.most_waiting = max(outer.most_waiting, outer.waiting)
                try:
                    status, reply = say(body, number)
                finally:
                    with lock:
                        outer.waiting -= 1
                if status == 0:  # hang up in the middle of the answer
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
                    return
                if status == 200 and isinstance(reply, str):
                    reply = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if status == 429:
                    self.send_header("Retry-After", "0.01")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def serve(monkeypatch, tmp_path) -> Iterator[Callable[[Said], Server]]:
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.002)
    servers: list[Server] = []

    def start(say: Said) -> Server:
        servers.append(Server(say))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def judge_at(server: Server, **settings: Any) -> EndpointJudge:
    given = {"endpoint": server.url, "judge_model": "judge-1", "auth_variable": "JUDGE_KEY", **settings}
    return EndpointJudge(WinrateMeasure(judge=JudgeKind.endpoint, **given), RUBRIC, Console(quiet=True))


def prefers_sea(body: dict[str, Any], _: int) -> tuple[int, str]:
    """Names the answer that begins with Sea."""
    text = body["messages"][0]["content"]
    return 200, "A" if "[Answer A]\nSea" in text else "B"


def test_an_endpoint_is_asked_in_both_orders_once_and_with_its_key(serve, tmp_path):
    server = serve(prefers_sea)
    judge = judge_at(server)
    asked = ask(judge, [*PAIRS, Pair(QUESTION, "Same.", "Same. ")], "asked")
    assert [(each.shown_first, each.shown_second) for each in asked.verdicts[:6]] == [(1.0, 1.0)] * 6
    assert asked.verdicts[6].preference == 0.5 and not asked.verdicts[6].is_asked
    assert len(server.requests) == 12
    assert {key for _, key in server.requests} == {f"Bearer {KEY}"}
    again = judge_at(server)
    assert ask(again, PAIRS, "asked").verdicts == asked.verdicts[:6]
    assert len(server.requests) == 12 and again.counts == {endpoints.FROM_CACHE: 12}
    kept = [file.read_text() for file in (tmp_path / "cache").rglob("*.json")]
    assert len(kept) == 12 and not any(KEY in text for text in kept)
    other = judge_at(server, judge_model="judge-2")  # another model says its own
    ask(other, PAIRS[:1], "asked")
    assert len(server.requests) == 14


TROUBLE: dict[str, tuple[int, Any]] = {
    "rate limit": (429, {"error": "slow down"}),
    "failure": (500, {"error": "broken"}),
    "overload": (503, b"<html>"),
    "hangs up": (0, None),
    "no completion": (200, {"surprise": []}),
    "no JSON": (200, b"<html>"),
    "no verdict": (200, "Both have their merits."),
}


@pytest.mark.parametrize("trouble", TROUBLE, ids=str)
def test_what_goes_wrong_once_is_tried_again_and_counted(serve, trouble):
    seen: Counter[str] = Counter()

    def say(body: dict[str, Any], number: int) -> tuple[int, Any]:
        words = body["messages"][0]["content"]
        seen[words] += 1
        return TROUBLE[trouble] if seen[words] == 1 else prefers_sea(body, number)

    judge = judge_at(serve(say))
    asked = ask(judge, PAIRS, "asked")
    assert [verdict.preference for verdict in asked.verdicts] == [1.0] * 6
    assert sum(judge.counts.values()) == 12 and all("retried" in what for what in judge.counts)


@pytest.mark.parametrize("trouble", ["rate limit", "hangs up", "no verdict"])
def test_what_always_goes_wrong_for_one_pair_is_no_verdict_and_counted(serve, trouble):
    def say(body: dict[str, Any], number: int) -> tuple[int, Any]:
        return TROUBLE[trouble] if "lake 3" in body["messages"][0]["content"] else prefers_sea(body, number)

    judge = judge_at(serve(say), retries=2)
    asked = ask(judge, PAIRS, "asked")
    assert [verdict is None for verdict in asked.verdicts] == [False, False, False, True, False, False]
    assert asked.missing == 1 and judge.counts["no verdict"] == 2


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "JUDGE_KEY is not accepted"), (404, "no such model judge-1"), (400, "too long")],
)
def test_what_no_patience_helps_is_one_sentence_without_the_key(serve, status, said):
    server = serve(lambda *_: (status, {"error": {"message": f"{said}, {KEY}"}}))
    with pytest.raises(UserError, match=said) as caught:
        ask(judge_at(server), PAIRS * 20, "asked")
    assert KEY not in str(caught.value) and "eval.winrate.endpoint=" in str(caught.value)
    assert len(server.requests) <= 2 * WinrateMeasure().concurrency


def test_an_endpoint_that_is_not_there_ends_the_command_soon(serve):
    server = serve(prefers_sea)
    server.http.server_close()
    with pytest.raises(UserError, match="answers nothing"):
        ask(judge_at(server, retries=1), PAIRS * 20, "asked")


def test_no_more_questions_wait_than_allowed_and_a_model_without_temperature_is_asked_without(serve):
    def say(body: dict[str, Any], number: int) -> tuple[int, Any]:
        threading.Event().wait(0.01)
        return (
            (400, {"error": "temperature is not supported"})
            if "temperature" in body
            else prefers_sea(body, 0)
        )

    server = serve(say)
    judge = judge_at(server, concurrency=2)
    assert ask(judge, PAIRS, "asked").missing == 0
    assert server.most_waiting <= 2 and judge.counts[endpoints.NO_TEMPERATURE] >= 1


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A", 1.0), ("B.", 0.0), ("C", 0.5), ("**B**", 0.0), ("[[A]]", 1.0), ("Answer: B", 0.0),
        ("(A)", 1.0), ("The better answer is B.", 0.0), ("Both name a sea.\n\nVerdict: A", 1.0),
        ("A\n\nIt is clearer.", 1.0), ("<think>B or A? A.</think>\nB", 0.0), ("Answer A is better", 1.0),
        ("", None), ("D", None), ("A better one could be given", None),
        ("Between answer A and answer B", None), ("Both are fine", None),
        ("Absolutely", None), ("I'd say neither", None),
    ],
)  # fmt: skip
def test_a_written_verdict_is_read_or_is_none(text, verdict):
    assert read_verdict(text) == verdict


def test_the_question_holds_the_whole_conversation():
    prompt = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Which sea?"},
    )
    (message,) = judge_messages(Pair(prompt, "One.", "Two."), RUBRIC, may_tie=True)
    parts = ("Be brief.", "Hello.", "Good day.", "Which sea?", "One.", "Two.")
    places = [message["content"].index(part) for part in parts]
    assert places == sorted(places)


class Knows:
    """A judge of a known character: `better` gives the probability for the answer that is shown first."""

    def __init__(self, better: Callable[[Pair], float | None], depends_on_order: bool = True) -> None:
        self.name, self.counts, self.better = "known", Counter[str](), better
        self.depends_on_order = depends_on_order

    def probabilities(self, pairs: list[Pair], label: str) -> list[float | None]:
        return [self.better(pair) for pair in pairs]


RIGHT = {case.good: case for case in own_cases()}


def worth(pair: Pair, answer: str) -> float:
    """What a good judge thinks: right and whole 1, padded 0.9, else 0."""
    case = next((case for case in RIGHT.values() if case.prompt == pair.prompt), None)
    assert case is not None
    return 1.0 if answer == case.good else 0.9 if answer.startswith(case.good) else 0.0


def by_worth(pair: Pair) -> float:
    return 0.5 + (worth(pair, pair.answer) - worth(pair, pair.other)) / 2


CHARACTERS: dict[str, tuple[Callable[[Pair], float | None], set[str]]] = {
    "good": (by_worth, set()),
    "always A": (lambda _: 1.0, {"order", "wrong fact", "cut answer", "other prompt"}),
    "always ties": (lambda _: 0.5, {"wrong fact", "cut answer", "other prompt"}),
    "longer": (lambda pair: float(len(pair.answer) > len(pair.other)), {"length", "other prompt"}),
    "silent": (lambda _: None, {"no verdict"}),
    "knows no facts": (
        lambda pair: 0.5 if len(pair.answer.split()) == len(pair.other.split()) else by_worth(pair),
        {"wrong fact"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("character", CHARACTERS)
def test_a_trial_finds_what_a_judge_lacks(character):
    better, expected = CHARACTERS[character]
    trial = try_judge(Knows(better), own_cases())
    assert expected <= set(trial.failed)
    assert trial.passed == (character == "good")
    assert {row["check"] for row in trial.table()} == set(LIMITS) - {"own family"}
    assert ("FAILED" in trial.sentence("x")) == (character != "good")


def test_a_judge_whose_verdict_cannot_depend_on_the_order_is_asked_once():
    asked: list[Pair] = []
    judge = Knows(lambda pair: asked.append(pair) or by_worth(pair), depends_on_order=False)
    trial = try_judge(judge, own_cases())
    assert trial.passed and "order" not in {outcome.name for outcome in trial.outcomes}
    assert len(asked) == len({(pair.answer, pair.other) for pair in asked})


@pytest.mark.parametrize("partial", [False, True])
def test_a_judge_that_favors_its_family_is_found(partial):
    prompts = [({"role": "user", "content": f"Name number {place}."},) for place in range(12)]
    own, other = [f"own {place}" for place in range(12)], [f"other {place}" for place in range(12)]

    def better(pair: Pair) -> float:
        if partial:
            return float(pair.answer.startswith("own"))
        number = pair.prompt[0]["content"].split()[-1].rstrip(".")
        return float(pair.answer.split()[-1] == number)

    trial = try_family(Knows(better), trials.Trial([], []), prompts, own, other)
    assert trial.failed == (["own family"] if partial else [])
    assert trial.outcomes[0].scores.mean == float(partial)


def test_planted_facts_are_those_of_other_prompts_and_none_of_the_answers_own():
    """Where the data name too few, the lab's own questions are asked as well."""
    known = [(QUESTION, f"It is Land{place}, they say.", [f"Land{place}", "also"]) for place in range(9)]
    cases = build_cases(known, 9)
    assert [case.wrong for case in cases] == [f"It is Land{(place + 1) % 9}, they say." for place in range(9)]
    assert len(build_cases([(QUESTION, "No facts in here.", None)] * 9, 9)) == 18
    assert len({question for question, *_ in trials.FACTS}) == len(trials.FACTS) >= 32
    for _, text, right, wrong in trials.FACTS:
        assert "{}" in text and right != wrong and wrong not in text
