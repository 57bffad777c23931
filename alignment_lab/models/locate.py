"""From a `model` setting to weights and tokenizer. Finding them needs no torch; what cannot be had is one sentence.

Weights are held in float32 and computed with in `model.dtype`: an update of 1e-6 is lost on a bfloat16 weight.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from ..config import Model, ModelSource, Shape
from ..runtime.errors import UserError
from ..runtime.files import cache_directory, publish_directory, read_json
from .embedded import embedded_weights

FILES = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.model",
    "*.txt",
]  # of a Hub repository: no pickles, no second copies


def locate(model: Model) -> Path:
    """The directory with config, weights and tokenizer, fetched from the Hub or made where need be. Raises UserError."""
    if model.source is ModelSource.embedded:
        return embedded_weights()
    if model.source is ModelSource.random:
        assert model.shape is not None
        return _random(model.shape)
    assert model.path is not None
    local = Path(model.path).expanduser()
    return local if local.is_dir() else _fetch(model.path, model.revision)


def _random(shape: Shape) -> Path:
    """A Llama of this shape with random weights, the same ones for every seed of the training, and the embedded tokenizer. Made once."""
    words = repr(sorted(vars(shape).items()))
    final = cache_directory() / "models" / f"random-{hashlib.sha256(words.encode()).hexdigest()[:16]}"
    if not final.is_dir():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(embedded_weights())
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(llama_config(shape))
        partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
        made.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        publish_directory(partial, final)
    return final


def _fetch(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    said = f"model.path={repository}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES))
    except GatedRepoError:
        remedy = "is gated; accept its licence on its page and log in with `hf auth login`."
    except (RepositoryNotFoundError, HFValidationError):
        remedy = "is neither a directory here nor a repository of the Hub; correct it."
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        remedy = "is not on this machine and the Hub cannot be reached; fetch it where there is a network, or use model=embedded."
    raise UserError(f"{said} {remedy}")


def describe_remote_code(model: Model, where: Path) -> str:
    """What `trust_remote_code` means here: a model's files may name another repository for their code, as `org/name--file.Class`."""
    found: set[str] = set()
    for file in ("config.json", "tokenizer_config.json"):
        named = ((read_json(where / file) or {}).get("auto_map") or {}).values()
        words = [word for entry in named for word in (entry if isinstance(entry, list) else [entry]) if word]
        found |= {word.partition("--")[0] if "--" in word else model.path or str(where) for word in words}
    code = (
        f"the code of {', '.join(sorted(found))} runs here, with your rights"
        if found
        else f"{model.path or where} brings no code"
    )
    return f"model.trust_remote_code=true: {code}"


def llama_config(shape: Shape, **more: Any) -> Any:
    """A Llama of this shape; its special tokens are the embedded tokenizer's, and `more` is the config's own keywords."""
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
        **more,
    )
