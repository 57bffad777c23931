"""A judge behind an OpenAI-compatible interface: asked with patience, and never twice for the same words."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...config import WinrateMeasure
from ...runtime.errors import UserError
from ...runtime.files import cache_directory, json_digest, keep, read_kept
from ...runtime.progress import ProgressBar
from ...runtime.redaction import redact
from .rubric import judge_messages, read_verdict
from .verdicts import NO_VERDICT, Pair

if TYPE_CHECKING:
    import httpx
    from rich.console import Console

FIRST_WAIT = 0.5  # seconds before the first retry; each later one waits twice as long
LONGEST_WAIT = 60.0
RETRIED = {408, 409, 425, 429}  # and every 5xx
REMINDER = "Reply with one letter and nothing else: A, B, or C."
SHOWN = 200  # characters of what a server said, in an error
FROM_CACHE = "answered from the cache"
MALFORMED = "retried: a verdict that is none"
NO_TEMPERATURE = "sent without a temperature, which the model does not take"


class EndpointJudge:
    """Its written verdict is A, B or C (a tie). What it said is kept on disk by endpoint, model and words."""

    depends_on_order = True

    def __init__(self, settings: WinrateMeasure, rubric: str, console: Console) -> None:
        assert settings.judge_model is not None
        self.settings, self.rubric, self.console = settings, rubric, console
        self.name = settings.judge_model
        self.counts: Counter[str] = Counter()
        self.url = settings.endpoint.rstrip("/") + "/chat/completions"
        self._key = os.environ.get(settings.auth_variable, "")
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._succeeded = self._takes_no_temperature = False
        self._gave_up = 0

    def close(self) -> None:
        """Nothing is held between questions."""

    def probabilities(self, pairs: Sequence[Pair], label: str) -> list[float | None]:
        """See `Judge`. Raises UserError where the endpoint refuses the question, or answers none of them."""
        import httpx

        messages = [judge_messages(pair, self.rubric, may_tie=True) for pair in pairs]
        found: dict[int, float | None] = {}
        with (
            httpx.Client(timeout=self.settings.timeout, follow_redirects=True) as client,
            ProgressBar(label, len(pairs), self.console) as bar,
            ThreadPoolExecutor(self.settings.concurrency) as pool,
        ):

            def one(index: int) -> None:
                if self._stop.is_set():  # another question was refused: the rest is not asked
                    return
                try:
                    verdict = self._verdict(client, messages[index])
                except BaseException:
                    self._stop.set()
                    raise
                with self._lock:
                    found[index] = verdict
                    bar.advance()

            futures = [pool.submit(one, index) for index in range(len(pairs))]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                self._stop.clear()
        return [found[index] for index in range(len(pairs))]

    def _verdict(self, client: httpx.Client, messages: list[Any]) -> float | None:
        """Ask until there is a verdict, or until the retries are used up: None."""
        cached = _cache_file(self.url, self.name, messages)
        kept = read_kept(cached)
        verdict = read_verdict(kept["said"]) if isinstance(kept, dict) and "said" in kept else None
        if verdict is not None:
            self._count(FROM_CACHE)
            return verdict
        asked, said = messages, ""
        for attempt in range(self.settings.retries + 1):
            said, problem, pause = self._ask(client, asked, attempt)
            if problem is None and (verdict := read_verdict(said)) is not None:
                keep(cached, {"said": said})
                self._succeeded = True
                return verdict
            if problem is None:
                self._succeeded = True
                problem, pause = MALFORMED, 0.0
                reply = {"role": "assistant", "content": said}
                asked = [*messages, reply, {"role": "user", "content": REMINDER}]
            if attempt < self.settings.retries:
                self._count(problem)
                if self._stop.wait(pause):
                    return None
        self._give_up(problem)
        return None

    def _ask(self, client: httpx.Client, messages: list[Any], attempt: int) -> tuple[str, str | None, float]:
        """(what was said, the problem that is worth another try, seconds to wait before it)."""
        import httpx

        body: dict[str, Any] = {"model": self.name, "messages": messages}
        if not self._takes_no_temperature:
            body["temperature"] = 0
        pause = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1)
        try:
            response = client.post(self.url, json=body, headers=self._headers())
        except httpx.TransportError as error:
            return "", f"retried: {type(error).__name__}", pause
        except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise UserError(f"eval.winrate.endpoint={self._shown_url()}: {error}; correct it.") from None
        status = response.status_code
        if status in RETRIED or status >= 500:
            return "", f"retried: HTTP {status}", _asked_pause(response) or pause
        if status == 400 and "temperature" in response.text and "temperature" in body:
            self._takes_no_temperature = True
            self._count(NO_TEMPERATURE)
            return self._ask(client, messages, attempt)
        if status >= 400 or status < 200:
            raise UserError(self._refusal(status, response.text))
        try:
            said = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return "", "retried: a response that is no chat completion", pause
        return str(said or ""), None, 0.0

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _give_up(self, problem: str | None) -> None:
        """Count a question without an answer. Raises UserError where nothing was ever answered."""
        self._count(NO_VERDICT)
        with self._lock:
            self._gave_up += 1
        if not self._succeeded and self._gave_up >= min(self.settings.concurrency, 3):
            reason = (problem or "").removeprefix("retried: ")
            raise UserError(
                f"eval.winrate.endpoint={self._shown_url()}: answers nothing ({reason}, "
                f"{self.settings.retries + 1} tries each); start it, or correct the address."
            )

    def _refusal(self, status: int, text: str) -> str:
        """Why the server takes no such question, in one sentence."""
        said = " ".join(self._without_key(text).split())[:SHOWN]
        start = f"eval.winrate.endpoint={self._shown_url()}: HTTP {status}"
        if status in (401, 403):
            variable, has = self.settings.auth_variable, "is not accepted" if self._key else "is empty"
            return (
                f"{start}: the key in {variable} {has}; put a valid one there, or name another variable with "
                "eval.winrate.auth_variable."
            )
        return f"{start} for judge_model={self.name}: {said}; correct the address or the name of the model."

    def _without_key(self, text: str) -> str:
        return redact(text.replace(self._key, "***") if self._key else text)

    def _shown_url(self) -> str:
        """The address without a user and a password."""
        parts = urlsplit(self.settings.endpoint)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _asked_pause(response: httpx.Response) -> float | None:
    """The seconds that a Retry-After header asks for; None where it names none."""
    value = response.headers.get("retry-after", "")
    try:
        return min(LONGEST_WAIT, max(0.0, float(value)))
    except ValueError:
        return None


def _cache_file(url: str, model: str, messages: Sequence[Any]) -> Path:
    """Where what this model said to these messages is kept."""
    digest = json_digest({"url": url.rpartition("@")[2], "model": model, "messages": list(messages)})
    return cache_directory() / "judgments" / digest[:2] / f"{digest}.json"
