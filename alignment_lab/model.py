"""From a `model` setting to weights and tokenizer. Finding them needs no torch; what cannot be had is one sentence.

Weights are held in float32 and computed with in `model.dtype`: an update of 1e-6 is lost on a bfloat16 weight.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cluster, embedded, parallel, provenance
from .artifacts import cache_directory, publish_directory, read_json, write_json
from .errors import UserError
from .spec import TEMPLATES, Adapter, Device, Dtype, Experiment, Model, ModelSource, Shape, Sharding

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # of a Hub repository: no pickles, no second copies


def locate(model: Model) -> Path:
    """The directory with config, weights and tokenizer, fetched from the Hub or made where need be. Raises UserError."""
    if model.source is ModelSource.embedded:
        return embedded.weights()
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

        tokenizer = AutoTokenizer.from_pretrained(embedded.weights())
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(llama_config(shape))
        partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
        made.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        publish_directory(partial, final)
    return final


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


def trusted(model: Model, where: Path) -> str:
    """What `trust_remote_code` means here: a model's files may name another repository for their code, as `org/name--file.Class`."""
    found: set[str] = set()
    for file in ("config.json", "tokenizer_config.json"):
        named = ((read_json(where / file) or {}).get("auto_map") or {}).values()
        words = [word for entry in named for word in (entry if isinstance(entry, list) else [entry]) if word]
        found |= {word.partition("--")[0] if "--" in word else model.path or str(where) for word in words}
    code = f"the code of {', '.join(sorted(found))} runs here, with your rights" if found else f"{model.path or where} brings no code"
    return f"model.trust_remote_code=true: {code}"


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


def load_model(
    model: Model, where: Path, *, scores: bool = False, dtype: torch.dtype | None = None, quantisation: Any = None
) -> PreTrainedModel:
    """The model in evaluation mode, without dropout: policy and reference must be the same function. Weights are float32 unless said.

    With `scores` it has a head of one output instead of the LM head, a new one where the files have none: a reward model.
    `quantisation` is a BitsAndBytesConfig. Raises UserError where any other weight is not in the files.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    from . import attention as packed

    packed.register()
    disable_progress_bar()  # transformers' own, for every shard that it reads or writes
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    attention: dict[str, Any] = {"attn_implementation": model.attention.name}
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code, "dtype": dtype or torch.float32}
    options |= {"num_labels": 1} if scores else {}
    if quantisation is not None:
        here = cluster.local_rank() if torch.cuda.is_available() else "cpu"
        options |= {"quantization_config": quantisation, "device_map": {"": here}}
    torch.manual_seed(0)  # a new head is the same for every seed of the training
    try:
        found = _whole(kind, where, **attention, **options)
        takes = found._supports_attention_backend
    except KeyError:
        takes = False
    if not takes:  # a family whose attention is its own
        found = _whole(kind, where, attn_implementation=None, **options)
    for module in found.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return found.eval()


def _whole(kind: Any, where: Path, **options: Any) -> Any:
    """The model in this directory. What it lacks, its own head for scores aside, would be random; transformers only prints a table."""
    found, told = kind.from_pretrained(where, output_loading_info=True, **options)
    inner = found.base_model_prefix if "num_labels" in options else ""
    lacks = sorted(name for name in told["missing_keys"] if name.startswith(inner))
    if lacks:
        several = f"{len(lacks)} weights of it are" if len(lacks) > 1 else "a weight of it is"
        raise UserError(f"{where}: {several} not in its files and would be random, {lacks[0]} for one; give a model that is whole.")
    return found


def load_policy(spec: Experiment, where: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The model that is trained, with its adapter where it has one. What is frozen is held in `dtype`, or quantised.

    It lies on `device`, unless processes will cut it: then whoever cuts it places it.
    """
    import torch

    dials = spec.parallel
    frozen = dials.adapter is not Adapter.none
    quantisation = parallel.quantised(dials, dtype)
    scores = not spec.method.generates
    model = load_model(spec.model, where, scores=scores, dtype=dtype if frozen else torch.float32, quantisation=quantisation)
    parallel.steady(model)
    if quantisation is not None and device.type == "cpu":
        _let_go(model)
    policy = _adapted(model, spec) if frozen else model
    return policy if quantisation is not None or dials.sharding in (Sharding.zero3, Sharding.fsdp) else policy.to(device)


def _let_go(model: Any) -> None:
    """Copy what was not quantised out of the file. While one tensor lies in its mapping, all of its pages that were read stay resident."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.clone()


def _adapted(model: Any, spec: Experiment) -> Any:
    """The model under a fresh adapter, drawn by the training's seed, or under the one that the experiment goes on from."""
    import torch
    from peft import PeftModel, get_peft_model

    for weight in model.parameters():
        weight.requires_grad_(False)
    torch.manual_seed(spec.training.seed)
    if spec.model.init_adapter:
        return PeftModel.from_pretrained(model, Path(spec.model.init_adapter).expanduser(), is_trainable=True).eval()
    policy = get_peft_model(model, parallel.lora(spec.parallel, scores=not spec.method.generates)).eval()
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # a reward model's head is a copy in the base's type: too coarse to be trained
    return policy


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


def device_and_dtype(spec: Experiment) -> tuple[torch.device, torch.dtype]:
    """Where this process computes and in what: `auto` is an accelerator where torch sees one, and bfloat16 where it is faster."""
    import torch

    cuda = torch.cuda.is_available() and spec.parallel.device is not Device.cpu
    if spec.parallel.device is Device.cuda and not cuda:
        raise UserError("parallel.device=cuda: torch sees no accelerator here; use parallel.device=auto, or a machine that has one.")
    wanted = spec.model.dtype
    if wanted is Dtype.auto:
        wanted = Dtype.bfloat16 if (torch.cuda.is_bf16_supported() if cuda else bfloat16_pays()) else Dtype.float32
    device = torch.device("cuda", cluster.local_rank()) if cuda else torch.device("cpu")
    return device, torch.bfloat16 if wanted is Dtype.bfloat16 else torch.float32


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


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device, or in this machine for each of its processes."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 of vocabulary, rules and chat template."""
    rules = tokenizer.backend_tokenizer.to_str() if hasattr(tokenizer, "backend_tokenizer") else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{rules}{tokenizer.chat_template}".encode()).hexdigest()
