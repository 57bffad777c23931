"""To the Hub, private unless asked otherwise. Whether it can work at all is found out before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import UserError


def check(repository: str) -> None:
    """Raise UserError unless the name is one, somebody is logged in, and the Hub knows them."""
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
    with _reached(repository):
        HfApi().whoami()


def push(folder: Path, repository: str, *, revision: str | None, public: bool, message: str) -> str:
    """Upload a folder in one commit; its address. The repository, and the branch, are made where they do not exist."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _reached(repository):
        api.create_repo(repository, private=not public, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repository, folder_path=folder, revision=revision, commit_message=message
            )
        )


@contextmanager
def _reached(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"--push={repository}: the Hub refused it ({said}); log in as somebody who may, with `hf auth login`."
        ) from None
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(
            "httpx"
        ):  # its name changes with the Hub's client
            raise
        said = f"the Hub cannot be reached ({type(error).__name__}); leave it out, and push from where it can"
        raise UserError(f"--push={repository}: {said}.") from None
