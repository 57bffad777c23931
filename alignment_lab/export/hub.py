"""Uploads to the Hub: private by default, checked before any computation, tried again after a broken
connection.

What arrived at the Hub stays there: its client sends no file that is there with the same hash, so that the
same upload again goes on where it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError
from ..runtime.redaction import redact

ATTEMPTS = 3  # of an upload; each request of it is tried several times by the Hub's client
FIRST_PAUSE = 5.0  # seconds before the second attempt; twice as long before the third
# What exports write: files of an earlier one that the new one lacks would be loaded with it.
OWN_FILES = ["*.safetensors", "*.safetensors.index.json", "adapter_*", "export.json"]
LOGIN = "run `hf auth login`, or set HF_TOKEN"
MAX_REASON = 200  # characters of a library's message


@dataclass(frozen=True)
class Target:
    """Where an upload goes, and how the user named it."""

    repository: str  # org/name, or a name of the user's own
    revision: str | None = None  # a branch; None: the repository's own one
    private: bool = True
    option: str = "--push"  # that names the repository
    public_option: str = "--public"  # that lets it be public

    def __str__(self) -> str:
        return f"{self.option}={self.repository}"


class HubError(UserError):
    """An upload cannot be, or failed. `is_passing`: the network or the Hub failed, and later it may work."""

    def __init__(self, sentence: str, *, is_passing: bool) -> None:
        super().__init__(sentence)
        self.is_passing = is_passing


def check_push(target: Target) -> Target:
    """The target by its full name. Raises HubError unless the name is valid, somebody is logged in, the token
    may write, and the repository is not public without being asked to be.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(target.repository)
    except HFValidationError:
        raise HubError(f"{target}: is no name of a repository; give org/name.", is_passing=False) from None
    if not get_token():
        raise HubError(f"{target}: nobody is logged in to the Hub here; {LOGIN}.", is_passing=False)
    api = HfApi()
    with _errors_as_sentence(target):
        who = api.whoami()
        if ((who.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise HubError(
                f"{target}: the token of {who['name']} may only read; {LOGIN}, with a token that may write.",
                is_passing=False,
            )
        if "/" not in target.repository:
            target = replace(target, repository=f"{who['name']}/{target.repository}")
        try:
            is_public = api.repo_info(target.repository).private is False
        except RepositoryNotFoundError:
            is_public = False
    if is_public and target.private:
        raise HubError(
            f"{target}: this repository is public; add {target.public_option} to upload to it, or give "
            "another name.",
            is_passing=False,
        )
    return target


def upload(
    folder: Path,
    files: Sequence[str],
    target: Target,
    *,
    message: str,
    notify: Callable[[str], None],
    go_on: str = "the same command goes on",
) -> str:
    """Upload these files of a folder as one state of the branch, and return its URL.

    Creates the repository and the branch where they are missing; deletes there what an earlier export wrote
    and this one does not have. Raises HubError, whose sentence ends with `go_on` where a later attempt may
    succeed.
    """
    from huggingface_hub.utils import logging

    verbosity, pause = logging.get_verbosity(), FIRST_PAUSE
    logging.set_verbosity(logging.ERROR)  # it warns of every request that it tries again
    try:
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                with _errors_as_sentence(target):
                    return _upload_once(folder, files, target, message)
            except HubError as error:
                if not error.is_passing:
                    raise
                if not attempts_left:
                    kept = f"what arrived there stays, and {go_on}"
                    raise HubError(f"{str(error).rstrip('.')}; {_sentence(kept)}", is_passing=True) from None
                notify(f"{str(error).rstrip('.')}; trying again in {pause:.0f} s")
                time.sleep(pause)
                pause *= 2
    finally:
        logging.set_verbosity(verbosity)
    raise AssertionError("the last attempt returns or raises")


def _upload_once(folder: Path, files: Sequence[str], target: Target, message: str) -> str:
    from huggingface_hub import HfApi

    api, repository, revision = HfApi(), target.repository, target.revision
    api.create_repo(repository, private=target.private, exist_ok=True)
    if revision:
        api.create_branch(repository, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        revision=revision,
        commit_message=message,
        allow_patterns=[_literal(name) for name in files],
        delete_patterns=OWN_FILES,
    )
    return str(commit.commit_url)


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


@contextmanager
def _errors_as_sentence(target: Target) -> Iterator[None]:
    """Turn what the Hub's client raises into a HubError."""
    try:
        yield
    except (HubError, AssertionError, TypeError, AttributeError, NameError):
        raise
    except Exception as error:  # of the client, of its HTTP library and of its transfer library
        raise _explain(error, target) from None


def _explain(error: Exception, target: Target) -> HubError:
    """The sentence of the first cause that says something: an HTTP status, a broken connection, a file."""
    chain = list(_causes(error))
    for cause in chain:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return _explain_status(int(status), cause, target)
    for cause in chain:
        if isinstance(cause, OSError) and cause.filename is not None:
            return HubError(f"{target}: {redact(str(cause))}.", is_passing=False)
        # The Hub's client raises network errors of httpx, whose names change with its version.
        if isinstance(cause, OSError) or type(cause).__module__.startswith("httpx"):
            reached = f"the Hub cannot be reached, or the connection broke ({type(cause).__name__})"
            return HubError(f"{target}: {reached}.", is_passing=True)
    # hf_xet raises RuntimeError for whatever ends a transfer; a ValueError is about what is uploaded
    is_passing = not isinstance(error, ValueError)
    return HubError(f"{target}: the upload failed ({_reason(error)}).", is_passing=is_passing)


def _explain_status(status: int, error: BaseException, target: Target) -> HubError:
    if status == 401:
        return HubError(f"{target}: the Hub does not accept the token (401); {LOGIN}.", is_passing=False)
    if status in (403, 404):
        owner = target.repository.partition("/")[0]
        why = f"this token may not write to it ({status})"
        return HubError(f"{target}: {why}; {LOGIN}, as somebody who may write to {owner}.", is_passing=False)
    if status == 429 or status >= 500:
        what = "asks for patience" if status == 429 else "failed"
        return HubError(f"{target}: the Hub {what} ({status}).", is_passing=True)
    return HubError(f"{target}: the Hub refused it ({_reason(error)}).", is_passing=False)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: Any) -> str:
    """A library's message in one line, without addresses, which may hold a signature."""
    words = [word for word in redact(str(error)).split() if "://" not in word]
    return " ".join([type(error).__name__ + ":", *words])[:MAX_REASON]


def _sentence(text: str) -> str:
    return f"{text.rstrip('.')}."
