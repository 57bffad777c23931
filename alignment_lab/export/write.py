"""The folder to give away: weights, tokenizer, generation config, and the proof that a fresh process loads them."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoints import verify
from ..runtime.files import read_json, write_json
from ..runtime.run_directory import RunDirectory
from . import merge

MARK = "export.json"  # by which a folder is known as an export, and may be written again
ROUNDING = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}  # nats between two processes on one machine


def write(
    run: RunDirectory, folder: Path, *, dtype: str | None, base: Path | None, device: str
) -> dict[str, Any]:
    """Everything but the card. Returns, and leaves in export.json, what was merged and cast, its drift, and how exactly it loads again."""
    import torch
    from transformers import AutoTokenizer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = read_json(run.model / "adapter_config.json")
    how = merge.as_trained(run.spec(), run.report() or {}, adapter=bool(settings), base=base, device=device)
    tokenizer = AutoTokenizer.from_pretrained(run.model, trust_remote_code=how.trust_remote_code)
    model, drifts = merge.exported(run.model, how, dtype, _prompts(run, tokenizer))
    if settings or dtype:
        _save(model, tokenizer, folder)
    else:
        shutil.copytree(run.model, folder, ignore=shutil.ignore_patterns("README.md"))
    said, held = verify.probe_outputs(model), str(model.dtype).removeprefix("torch.")
    del model
    gc.collect()
    torch.cuda.empty_cache()  # the fresh process needs the room
    again = verify.LoadOptions(dtype=held, device=device, trust_remote_code=how.trust_remote_code)
    facts = {
        "id": run.state().get("id"),
        "dtype": held,
        "adapter": _described(settings) if settings else None,
        "base": str(how.base or settings["base_model_name_or_path"]) if settings else None,
        "quantization": how.quantization.name,
        "scores": said.dim() == 1,
        "drift": [asdict(one) for one in drifts],
        "apart": verify.verify_saved(folder, said, again, tolerance=ROUNDING[held]),
    }
    write_json(folder / MARK, facts)
    return facts


def _described(settings: dict[str, Any]) -> str:
    """An adapter_config.json in words."""
    kind = "dora" if settings.get("use_dora") else "rslora" if settings.get("use_rslora") else "lora"
    return f"{kind}, rank {settings['r']}, alpha {settings['lora_alpha']:g}"


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """As a run saves full weights: generation ends where training taught it to, and a reward model knows its padding."""
    from ..data.templates import stop_token_ids

    model.config.use_cache = True
    if model.can_generate():
        model.generation_config.eos_token_id = stop_token_ids(tokenizer)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    else:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _prompts(run: RunDirectory, tokenizer: Any) -> Sequence[list[int]]:
    """The first held-out prompts that the run answered, as ids; none of a reward model."""
    from ..data.templates import encode_prompts

    return encode_prompts(tokenizer, [row["prompt"] for row in run.samples()[: merge.PROMPTS]])


def in_words(facts: Mapping[str, Any]) -> list[str]:
    """What became of the weights, a line each."""
    lines = []
    quantized = facts["quantization"] != "none"
    if facts["adapter"]:
        into = (
            f"was trained on {facts['quantization']} weights and is merged into the dequantized ones"
            if quantized
            else "is merged into its base"
        )
        lines.append(f"the adapter ({facts['adapter']}) {into}; weights in {facts['dtype']}")
    else:
        lines.append(
            f"full weights in {facts['dtype']}, {'cast' if facts['drift'] else 'copied as they are'}"
        )
    lines += [f"drift from what was trained, {merge.Drift(**one)}" for one in facts["drift"]]
    unit = "of a score" if facts["scores"] else "nats"
    return [
        *lines,
        f"proved: a fresh process loads it with plain transformers and says the same within {facts['apart']:.2g} {unit}",
    ]
