"""From `model` settings to the model's folder: a local one, the embedded model, random weights, or the Hub.

Finding a local folder needs no torch. What cannot be found is one sentence. Refuses to load anything.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Model, ModelSource, Shape
from ..runtime.errors import UserError
from ..runtime.files import cache_directory, read_json
from ..runtime.publishing import build_once
from .embedded import embedded_weights

if TYPE_CHECKING:
    from transformers import LlamaConfig

# of a Hub repository: no pickles, and no second copy of the weights in another format
TOKENIZER_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
HUB_FILES = [*TOKENIZER_FILES, "*.safetensors"]


def locate_model(settings: Model) -> Path:
    """The folder with config, weights and tokenizer; downloaded or made where it does not exist.

    Raises UserError.
    """
    if settings.source is ModelSource.embedded:
        return embedded_weights()
    if settings.source is ModelSource.random:
        assert settings.shape is not None
        return _make_random(settings.shape)
    assert settings.path is not None
    local = Path(settings.path).expanduser()
    return local if local.is_dir() else _download(settings.path, settings.revision)


def locate_tokenizer(settings: Model) -> Path:
    """A folder with the model's config and tokenizer, without its weights where they are not there yet.

    Raises UserError.
    """
    if settings.source is ModelSource.random:
        return existing_folder(settings) or embedded_weights()
    if settings.source is ModelSource.hub and settings.path and not Path(settings.path).expanduser().is_dir():
        return _download(settings.path, settings.revision, TOKENIZER_FILES)
    return locate_model(settings)


def base_name(settings: Model, folder: Path) -> tuple[str, str | None]:
    """(name, revision) by which an adapter's config says what it was trained on: the Hub's id with the commit
    that was fetched, or a folder of this machine.
    """
    if settings.source is ModelSource.hub and settings.path and folder.parent.name == "snapshots":
        return settings.path, folder.name
    return str(folder.absolute()), None


def existing_folder(settings: Model) -> Path | None:
    """The model's folder where it is on this machine, as far as that is known without making anything or
    asking the Hub.
    """
    folder = None
    if settings.source is ModelSource.random and settings.shape is not None:
        folder = _random_folder(settings.shape)
    elif settings.source is ModelSource.hub and settings.path is not None:
        folder = Path(settings.path).expanduser()
    return folder if folder and folder.is_dir() else None


def _random_folder(shape: Shape) -> Path:
    fields = repr(sorted(vars(shape).items()))
    return cache_directory() / "models" / f"random-{hashlib.sha256(fields.encode()).hexdigest()[:16]}"


def _make_random(shape: Shape) -> Path:
    """A random Llama of this shape with the embedded tokenizer, made once: equal for every training seed."""

    def build(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # transformers' own, for every shard that it writes
        tokenizer = AutoTokenizer.from_pretrained(embedded_weights())
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(llama_config(shape)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return build_once(_random_folder(shape), build, marker="config.json")


def _download(repository: str, revision: str | None, files: list[str] = HUB_FILES) -> Path:
    """The snapshot of a Hub repository in the Hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except GatedRepoError:
        problem = "is gated; accept its license on its page and log in with `hf auth login`."
    except (RepositoryNotFoundError, HFValidationError):
        problem = "is neither a directory here nor a repository of the Hub; correct it."
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        problem = (
            "is not on this machine and the Hub cannot be reached; fetch it where there is a network, "
            "or use model=embedded."
        )
    raise UserError(f"model.path={repository} {problem}")


def describe_remote_code(settings: Model, folder: Path) -> str:
    """Whose code `trust_remote_code` runs, as one line.

    A model's files may name another repository for their code, as `org/name--file.Class`.
    """
    repositories: set[str] = set()
    for file in ("config.json", "tokenizer_config.json"):
        entries = ((read_json(folder / file) or {}).get("auto_map") or {}).values()
        references = [name for entry in entries for name in (entry if isinstance(entry, list) else [entry])]
        for reference in filter(None, references):
            owner, separator, _ = reference.partition("--")
            repositories.add(owner if separator else settings.path or str(folder))
    code = (
        f"the code of {', '.join(sorted(repositories))} runs here, with your permissions"
        if repositories
        else f"{settings.path or folder} has no code of its own"
    )
    return f"model.trust_remote_code=true: {code}"


def llama_config(shape: Shape, **options: Any) -> LlamaConfig:
    """A Llama of this shape with the embedded tokenizer's special tokens.

    `options` are LlamaConfig keywords.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **options,
    )
