"""Models, adapters and tokenizers that libraries refuse to save, or save by other names: each is refused in a
sentence before the first step, or saved so that it loads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import Row, attempt, experiment, last_output, remove_run

from alignment_lab.config import Experiment
from alignment_lab.models.locate import locate_model
from alignment_lab.runtime.run_directory import RunDirectory

METHODS = ("sft", "dpo", "reward")
STEPS = ["training.max_steps=1", "training.global_batch=2", "eval=none", "parallel.device=cpu"]


def sampling_flags(base: Path, folder: Path) -> list[str]:
    """A generation config that transformers refuses to write."""
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6}))
    return []


def reward_config(base: Path, folder: Path) -> list[str]:
    """A reward model's config; right for method=reward alone."""
    return edit_config(base, architectures=["LlamaForSequenceClassification"], num_labels=1)


def three_labels(base: Path, folder: Path) -> list[str]:
    """A classifier of three classes."""
    return edit_config(base, architectures=["LlamaForSequenceClassification"], num_labels=3)


def edit_config(base: Path, **fields: Any) -> list[str]:
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return []


def padding_token(base: Path, folder: Path) -> list[str]:
    """A padding token that the embedding has no row for."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base)
    return []


def adapter(**settings: Any) -> Callable[[Path, Path], list[str]]:
    """An adapter to go on from, of a language model."""

    def make(base: Path, folder: Path) -> list[str]:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        config = LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **settings})
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder / "adapter")
        return ["parallel=lora", f"model.init_adapter={folder / 'adapter'}"]

    return make


def targets(names: str) -> Callable[[Path, Path], list[str]]:
    """A new adapter on these layers."""
    return lambda base, folder: ["parallel=lora", f"parallel.targets=[{names}]"]


SITUATIONS: dict[str, Callable[[Path, Path], list[str]]] = {
    "sampling flags": sampling_flags,
    "a reward model's config": reward_config,
    "three labels": three_labels,
    "a padding token beyond the embedding": padding_token,
    "LoRA on the embedding": targets("q_proj,embed_tokens"),
    "LoRA on a layer that is not there": targets("c_attn"),
    "LoRA on a norm": targets("input_layernorm"),
    "an adapter with dropout": adapter(lora_dropout=0.2),
    "an adapter of new tokens": adapter(trainable_token_indices=[5, 6, 7]),
    "an adapter with its embedding": adapter(modules_to_save=["embed_tokens"]),
}


def campaign(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Every situation with every kind of method."""
    original = locate_model(experiment("model=tiny").model)
    row = Row("what cannot be saved")
    for name, situation in SITUATIONS.items():
        for method in METHODS[:1] if quick else METHODS:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(original, folder / "base")
            overrides = situation(folder / "base", folder)
            path = f"model.path={folder / 'base'}"
            spec = experiment(
                "model=hub", path, "model.dtype=float32", f"method={method}", *STEPS, *overrides
            )
            problem = _find_problem(spec, RunDirectory(folder / "run"))
            row.count(problem is None, f"{name}, {method}: {problem}; {last_output(folder / 'run')}")
            remove_run(folder / "run")
    yield row


def _find_problem(spec: Experiment, run: RunDirectory) -> str | None:
    code = attempt(spec, run.path)
    if code == 2:
        is_sentence = "Traceback" not in last_output(run.path)
        return None if is_sentence and not run.metrics() else "refused late, or by a traceback"
    is_saved = code == 0 and run.model.is_dir() and any(run.model.glob("*.safetensors"))
    return None if is_saved else f"exit {code}"
