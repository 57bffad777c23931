"""From a `model` setting to weights and tokenizer. Finding them needs no torch; what cannot be had is one sentence.

Weights are held in float32 and computed with in `model.dtype`: an update of 1e-6 is lost on a bfloat16 weight.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import embedded, provenance
from .artifacts import cache_directory, read_json, write_json
from .errors import UserError
from .spec import TEMPLATES, Device, Dtype, Experiment, Model, ModelSource, Shape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # of a Hub repository: no pickles, no second copies


def locate(model: Model) -> Path:
    """The directory with config, weights and tokenizer, fetched from the Hub where need be. Raises UserError."""
    if model.source is not ModelSource.hub:
        return embedded.weights()  # random weights go with the embedded tokenizer
    assert model.path is not None
    local = Path(model.path).expanduser()
    return local if local.is_dir() else _fetch(model.path, model.revision)


def _fetch(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

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


def load_tokenizer(model: Model, where: Path) -> PreTrainedTokenizerBase:
    """The tokenizer with the experiment's chat template. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=model.trust_remote_code)
    if model.chat_template:
        tokenizer.chat_template = chat_template(model.chat_template)
    if not tokenizer.chat_template:
        shipped = " or ".join(sorted(TEMPLATES))
        raise UserError(f"model={model.name}: its tokenizer has no chat template; set model.chat_template to {shipped}, or a .jinja file.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # never looked at: padding is told by lengths, not by its id
    return tokenizer


def chat_template(said: str) -> str:
    """The template behind `model.chat_template`: the template itself, a shipped name, or a file."""
    return said if "{" in said else TEMPLATES.get(said, Path(said).expanduser()).read_text(encoding="utf-8")


def load_model(model: Model, where: Path, *, scores: bool = False) -> PreTrainedModel:
    """The model in float32, in evaluation mode, without dropout: policy and reference must be the same function.

    With `scores` it has a new head of one output instead of the LM head: a reward model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    from . import attention as packed

    packed.register()
    disable_progress_bar()  # transformers' own, for every shard that it reads or writes
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    attention: dict[str, Any] = {"attn_implementation": model.attention.name, **({"num_labels": 1} if scores else {})}
    torch.manual_seed(0)  # random weights, and a new head, are the same for every seed of the training
    if model.source is ModelSource.random:
        assert model.shape is not None
        found = kind.from_config(
            llama_config(model.shape, **({"num_labels": 1} if scores else {})), attn_implementation=model.attention.name
        )
    else:
        code: dict[str, Any] = {"trust_remote_code": model.trust_remote_code, "dtype": torch.float32}
        try:
            found = kind.from_pretrained(where, **attention, **code)
            takes = found._supports_attention_backend
        except KeyError:
            takes = False
        if not takes:  # a family whose attention is its own
            found = kind.from_pretrained(where, **{**attention, "attn_implementation": None}, **code)
    for module in found.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return found.eval()


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


def place(model: PreTrainedModel, spec: Experiment) -> tuple[PreTrainedModel, torch.dtype]:
    """The model on the experiment's device, and the dtype to compute in: `auto` is bfloat16 where it is faster."""
    import torch

    cuda = torch.cuda.is_available()
    if spec.parallel.device is Device.cuda and not cuda:
        raise UserError("parallel.device=cuda: torch sees no accelerator here; use parallel.device=auto, or a machine that has one.")
    device = "cuda" if cuda and spec.parallel.device is not Device.cpu else "cpu"
    wanted = spec.model.dtype
    if wanted is Dtype.auto:
        wanted = Dtype.bfloat16 if (torch.cuda.is_bf16_supported() if device == "cuda" else bfloat16_pays()) else Dtype.float32
    return model.to(device), torch.bfloat16 if wanted is Dtype.bfloat16 else torch.float32


def bfloat16_pays() -> bool:
    """Whether this processor multiplies bfloat16 matrices at least 1.3 times as fast as float32: measured once, then remembered.

    Many have no instruction for it and are three to four times slower, whatever they report.
    """
    import torch

    file = cache_directory() / "bfloat16.json"
    key = f"{provenance.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known = read_json(file) or {}
    if key not in known:
        known[key] = round(_multiplying(torch.float32) / _multiplying(torch.bfloat16), 2)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
    return known[key] >= 1.3


def _multiplying(dtype: torch.dtype) -> float:
    """Seconds of the fastest of five products of two matrices of 768 x 768."""
    import torch

    one, other = (torch.ones(768, 768, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def free_bytes(model: PreTrainedModel) -> int:
    """Memory that is free on the model's device, or in this machine."""
    import psutil
    import torch

    return torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else psutil.virtual_memory().available


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 of vocabulary, rules and chat template."""
    rules = tokenizer.backend_tokenizer.to_str() if hasattr(tokenizer, "backend_tokenizer") else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{rules}{tokenizer.chat_template}".encode()).hexdigest()
