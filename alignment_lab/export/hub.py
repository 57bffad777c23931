"""Uploads to the Hub, private by default. Whether an upload can work is checked before any computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import UserError


def check_push(repository: str) -> None:
    """Raise UserError unless the name is valid, somebody is logged in, and the Hub accepts the token."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UserError(f"--push={repository}: is no name of a repository; give org/name.") from None
    if not get_token():
        raise UserError(
            f"--push={repository}: nobody is logged in to the Hub here; run `hf auth login`, or set HF_TOKEN."
        )
    with _hub_errors_as_sentence(repository):
        HfApi().whoami()


def push(folder: Path, repository: str, *, revision: str | None, public: bool, message: str) -> str:
    """Upload a folder in one commit and return its URL. Creates the repository and the branch if needed."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors_as_sentence(repository):
        api.create_repo(repository, private=not public, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message=message
        )
    return str(commit)


@contextmanager
def _hub_errors_as_sentence(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--push={repository}: the Hub refused it ({reason}); "
            "log in as somebody with write access, with `hf auth login`."
        ) from None
    except Exception as error:
        # The Hub's client raises network errors of httpx, whose names change with its version.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        raise UserError(
            f"--push={repository}: the Hub cannot be reached ({type(error).__name__}); "
            "leave it out, and push from a machine with a connection."
        ) from None
