"""The exported folder: weights, tokenizer, generation config, and the check that a fresh process loads it."""

from __future__ import annotations

import gc
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ..checkpoints import verify
from ..runtime.files import read_json, write_json
from ..runtime.run_directory import RunDirectory
from . import merge
from .base import find_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACTS_FILE = "export.json"  # marks a folder as an export, which may be overwritten
ROUNDING = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}  # nats between two processes on one machine


class ExportFacts(TypedDict):
    """export.json: what was merged and cast, and how exactly it loads again."""

    id: str | None  # of the run
    dtype: str
    adapter: str | None
    base: str | None
    quantization: str
    scores: bool  # a reward model
    base_note: str | None  # where the base is not the one that was trained on
    drift: list[dict[str, Any]]  # fields of OutputDifference
    apart: float  # largest difference to the outputs of a fresh process


def write_model(
    run: RunDirectory, folder: Path, *, dtype: str | None, base: Path | None, device: str
) -> ExportFacts:
    """Write everything but the model card, and return the facts that are also in export.json."""
    import torch
    from transformers import AutoTokenizer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter_config = read_json(run.model / "adapter_config.json")
    base, base_note = find_base(run, base) if adapter_config else (None, None)
    options = merge.load_options(
        run.spec(), run.report() or {}, has_adapter=bool(adapter_config), base=base, device=device
    )
    tokenizer = AutoTokenizer.from_pretrained(run.model, trust_remote_code=options.trust_remote_code)
    model, differences = merge.load_merged(run.model, options, dtype, _prompts(run, tokenizer))
    if adapter_config or dtype:
        _save(model, tokenizer, folder)
    else:
        shutil.copytree(run.model, folder, ignore=shutil.ignore_patterns("README.md"))
    outputs, saved_dtype = verify.probe_outputs(model), str(model.dtype).removeprefix("torch.")
    del model
    gc.collect()
    torch.cuda.empty_cache()  # the fresh process needs the memory
    saved_options = verify.LoadOptions(
        dtype=saved_dtype, device=device, trust_remote_code=options.trust_remote_code
    )
    facts: ExportFacts = {
        "id": run.state().get("id"),
        "dtype": saved_dtype,
        "adapter": _describe_adapter(adapter_config) if adapter_config else None,
        "base": str(base) if base else None,
        "base_note": base_note,
        "quantization": options.quantization.name,
        "scores": outputs.dim() == 1,
        "drift": [asdict(difference) for difference in differences],
        "apart": verify.verify_saved(folder, outputs, saved_options, tolerance=ROUNDING[saved_dtype]),
    }
    write_json(folder / FACTS_FILE, facts)
    return facts


def _describe_adapter(adapter_config: dict[str, Any]) -> str:
    """`lora, rank 16, alpha 32`, from an adapter_config.json."""
    kind = "lora"
    if adapter_config.get("use_dora"):
        kind = "dora"
    elif adapter_config.get("use_rslora"):
        kind = "rslora"
    return f"{kind}, rank {adapter_config['r']}, alpha {adapter_config['lora_alpha']:g}"


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save as a run saves full weights."""
    from ..models.generation_config import set_generation_config

    set_generation_config(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _prompts(run: RunDirectory, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids of the first held-out prompts that the run answered; none for a reward model."""
    from ..data.templates import encode_prompts

    return encode_prompts(tokenizer, run.samples()[: merge.MAX_PROMPTS])


def describe(facts: ExportFacts) -> list[str]:
    """What was done to the weights and what was verified, one line each."""
    unit = "of a score" if facts["scores"] else "nats"
    return [
        _describe_weights(facts),
        *([facts["base_note"]] if facts["base_note"] else []),
        *(
            f"difference from the trained model, {merge.OutputDifference(**difference)}"
            for difference in facts["drift"]
        ),
        "verified: a fresh process loads it with plain transformers and gives the same outputs "
        f"within {facts['apart']:.2g} {unit}",
    ]


def _describe_weights(facts: ExportFacts) -> str:
    if not facts["adapter"]:
        return f"full weights in {facts['dtype']}, {'cast' if facts['drift'] else 'copied unchanged'}"
    merged = "is merged into its base"
    if facts["quantization"] != "none":
        merged = f"was trained on {facts['quantization']} weights and is merged into the dequantized ones"
    return f"the adapter ({facts['adapter']}) {merged}; weights in {facts['dtype']}"
