"""The exported folder: weights, tokenizer, generation config, and the check that a fresh process loads it."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ..checkpoints import verify
from ..runtime.files import json_digest, read_json, write_json
from ..runtime.publishing import stamps
from ..runtime.run_directory import RunDirectory
from . import merge
from .base import EMBEDDED_MODEL_ID, base_name, find_base
from .gguf import Conversion, convert
from .names import file_name
from .scrub import scrub_configs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACTS_FILE = "export.json"  # marks a folder as an export, which may be overwritten
EMBEDDED_NOTE = (
    f"trained over the copy of {EMBEDDED_MODEL_ID} that comes with alignment_lab, whose weights are in 4 "
    "bits (Q4_1): over the Hub's own weights its outputs are somewhat different; merged it is exact"
)
ROUNDING = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}  # nats between two processes on one machine


class ExportFacts(TypedDict):
    """export.json: what was merged and cast, and how exactly it loads again. Names no path."""

    id: str | None  # of the run
    step: int | None  # of a checkpoint; None: the final model
    dtype: str
    adapter: str | None
    is_merged: bool  # the adapter, into its base
    base: str | None
    quantization: str
    scores: bool  # a reward model
    base_note: str | None  # where the base is not the one that was trained on
    drift: list[dict[str, Any]]  # fields of OutputDifference
    apart: float | None  # largest difference to the outputs of a fresh process; None: not measured
    gguf: dict[str, Any] | None  # file, type, bytes, tensors
    made_from: str  # a digest of the run's model and of the options


@dataclass(frozen=True)
class WriteOptions:
    """What is written of a run's model, and how."""

    dtype: str | None = None
    base: Path | None = None
    device: str = "auto"
    keep_adapter: bool = False  # the adapter alone, not merged
    max_shard_size: str | None = None
    gguf: Conversion | None = None

    def digest(self, run: RunDirectory) -> str:
        """What an export is made from: the same digest stands for the same files."""
        options = {**asdict(self), "base": str(self.base), "device": None}
        return json_digest([run.state().get("id"), stamps(run.model), options])


def write_model(run: RunDirectory, folder: Path, options: WriteOptions) -> tuple[ExportFacts, Path | None]:
    """Write everything but the model card; gives the facts that are also in export.json, and the folder of
    the base under an adapter.
    """
    import torch
    from transformers import AutoTokenizer

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    adapter_config = read_json(run.model / "adapter_config.json")
    base, base_note = find_base(run, options.base) if adapter_config else (None, None)
    load = merge.load_options(
        run.spec(), run.report() or {}, has_adapter=bool(adapter_config), base=base, device=device
    )
    tokenizer = AutoTokenizer.from_pretrained(run.model, trust_remote_code=load.trust_remote_code)
    if options.keep_adapter:
        model, differences = verify.load_saved(run.model, load), list[merge.OutputDifference]()
    else:
        model, differences = merge.load_merged(run.model, load, options.dtype, _prompts(run, tokenizer))
    if options.keep_adapter or not (adapter_config or options.dtype or options.max_shard_size):
        shutil.copytree(run.model, folder, ignore=shutil.ignore_patterns("README.md"))
    else:
        _save(model, tokenizer, folder, options.max_shard_size)
    outputs, held_in = verify.probe_outputs(model), str(model.dtype).removeprefix("torch.")
    del model
    gc.collect()
    torch.cuda.empty_cache()  # the fresh process needs the memory
    scrub_configs(folder, run.spec())
    saved = load if options.keep_adapter else verify.LoadOptions(
        dtype=held_in, device=device, trust_remote_code=load.trust_remote_code
    )  # fmt: skip
    as_saved = saved_facts(run, run.model)
    facts: ExportFacts = {
        **as_saved,
        "dtype": held_in,
        "is_merged": bool(adapter_config) and not options.keep_adapter,
        "base_note": base_note or (as_saved["base_note"] if options.keep_adapter else None),
        "quantization": load.quantization.name,
        "scores": outputs.dim() == 1,
        "drift": [asdict(difference) for difference in differences],
        "apart": verify.verify_saved(folder, outputs, saved, tolerance=ROUNDING[held_in]),
        "gguf": convert(folder, file_name(run.spec()["name"]), options.gguf) if options.gguf else None,
        "made_from": options.digest(run),
    }
    write_json(folder / FACTS_FILE, facts)
    return facts, base


def saved_facts(run: RunDirectory, folder: Path, step: int | None = None) -> ExportFacts:
    """The facts of what a run saved in `folder`, as it lies there: nothing is loaded, merged or verified."""
    spec, report = run.spec(), run.report() or {}
    adapter_config = read_json(folder / "adapter_config.json")
    architectures = (read_json(folder / "config.json") or {}).get("architectures") or [""]
    task = (adapter_config or {}).get("task_type")
    return {
        "id": run.state().get("id"),
        "step": step,
        "dtype": report.get("dtype") or "float32",
        "adapter": _describe_adapter(adapter_config) if adapter_config else None,
        "is_merged": False,
        "base": base_name(spec)[0] if adapter_config else None,
        "quantization": (spec.get("parallel") or {}).get("quantization") or "none",
        "scores": task == "SEQ_CLS" or architectures[0].endswith("ForSequenceClassification"),
        "base_note": EMBEDDED_NOTE if adapter_config and spec["model"]["source"] == "embedded" else None,
        "drift": [],
        "apart": None,
        "gguf": None,
        "made_from": "",
    }


def _describe_adapter(adapter_config: Mapping[str, Any]) -> str:
    """`lora, rank 16, alpha 32`, from an adapter_config.json."""
    kind = "lora"
    if adapter_config.get("use_dora"):
        kind = "dora"
    elif adapter_config.get("use_rslora"):
        kind = "rslora"
    return f"{kind}, rank {adapter_config['r']}, alpha {adapter_config['lora_alpha']:g}"


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, max_shard_size: str | None
) -> None:
    """Save as a run saves full weights."""
    from ..models.generation_config import set_generation_config

    set_generation_config(model, tokenizer)
    model.save_pretrained(folder, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
    tokenizer.save_pretrained(folder)


def _prompts(run: RunDirectory, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids of the first held-out prompts that the run answered; none for a reward model."""
    from ..data.templates import encode_prompts

    return encode_prompts(tokenizer, run.samples()[: merge.MAX_PROMPTS])


def describe(facts: ExportFacts) -> list[str]:
    """What was done to the weights and what was verified, one line each."""
    unit = "of a score" if facts["scores"] else "nats"
    loads = (
        "plain transformers and peft" if facts["adapter"] and not facts["is_merged"] else "plain transformers"
    )
    lines = [_describe_weights(facts)]
    if facts["base_note"]:
        lines.append(facts["base_note"])
    for difference in facts["drift"]:
        lines.append(f"difference from the trained model, {merge.OutputDifference(**difference)}")
    if facts["apart"] is not None:
        same = f"gives the same outputs within {facts['apart']:.2g} {unit}"
        lines.append(f"verified: a fresh process loads it with {loads} and {same}")
    if gguf := facts["gguf"]:
        template = "with the chat template" if gguf["has_template"] else "without a chat template"
        lines.append(f"{gguf['file']}: {gguf['tensors']} tensors, {gguf['bytes'] / 1e6:,.1f} MB, {template}")
    return lines


def _describe_weights(facts: ExportFacts) -> str:
    where = f", as they were saved at step {facts['step']}" if facts["step"] else ""
    if not facts["adapter"]:
        how = "cast" if facts["drift"] else "copied unchanged"
        return f"full weights in {facts['dtype']}{where or f', {how}'}"
    base = f"{facts['quantization']} weights" if facts["quantization"] != "none" else "its base"
    if not facts["is_merged"]:
        of = f"of {facts['base']}" if facts["base"] else ""
        return f"the adapter ({facts['adapter']}) alone{where}, trained on {base} {of}".rstrip()
    merged = "is merged into its base"
    if facts["quantization"] != "none":
        merged = f"was trained on {facts['quantization']} weights and is merged into the dequantized ones"
    return f"the adapter ({facts['adapter']}) {merged}; weights in {facts['dtype']}"
