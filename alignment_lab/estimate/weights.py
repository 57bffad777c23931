"""What is wrong with the weights that an experiment starts from, told by their configs alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import Experiment, ModelSource
from ..runtime.files import read_json
from .shape import hub_cached_file

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")  # whole, or in shards
REWARD_HEADS = ("ForSequenceClassification", "RewardModel")  # ends of names of architectures
OTHER_HEADS = ("ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
TASKS = {True: "CAUSAL_LM", False: "SEQ_CLS"}  # of an adapter, by whether its model generates


def weight_problems(spec: Experiment, folder: Path | None = None) -> Iterator[str]:
    """One sentence for each reason why training cannot start from these weights.

    `folder` is where the model was found; without it, what is known on this machine is looked at.
    """
    model, path = spec.model, spec.model.path
    if model.source is ModelSource.hub and path is not None:
        local = folder or Path(path).expanduser()
        if local.is_dir():
            config_file: Path | None = local / "config.json"
        else:
            config_file = hub_cached_file(model, "config.json")
            if _is_offline() and not any(hub_cached_file(model, name) for name in WEIGHT_FILES):
                yield (
                    f"model.path={path}: is not on this machine, and HF_HUB_OFFLINE=1; "
                    "fetch it where there is a network, or give a directory."
                )
        yield from _head_problems(spec, read_json(config_file) if config_file else None)
    yield from _adapter_problems(spec)


def _head_problems(spec: Experiment, config: dict[str, Any] | None) -> Iterator[str]:
    """A reward model has no LM head to train; other heads belong to no method."""
    architecture = ((config or {}).get("architectures") or [""])[0]
    what = f"model.path={spec.model.path}: it is a {architecture}"
    if architecture.endswith(OTHER_HEADS):
        yield f"{what}, and no method trains one; give a language model."
    elif not architecture.endswith(REWARD_HEADS):
        return
    elif spec.method.generates:
        yield (
            f"{what}, a reward model without an LM head, and method={spec.method.name} trains a language "
            "model; give one, or use method=reward."
        )
    elif (labels := _count_labels(config or {})) != 1:
        yield f"{what} with {labels} labels, and a reward model has one; give one, or a language model."


def _count_labels(config: dict[str, Any]) -> int:
    """As transformers counts them: it writes id2label, and takes two where nothing is said."""
    return int(config.get("num_labels") or len(config.get("id2label") or ("", "")))


def _adapter_problems(spec: Experiment) -> Iterator[str]:
    """An adapter that was trained for the other kind of head, or is none that the lab trains."""
    start = spec.model.init_adapter
    if start is None:
        return
    config = read_json(Path(start, "adapter_config.json").expanduser()) or {}
    what, task = f"model.init_adapter={start}", config.get("task_type")
    expected = TASKS[spec.method.generates]
    if config.get("peft_type", "LORA") != "LORA":
        yield (
            f"{what}: its peft_type is {config['peft_type']}, and LORA alone is trained (with DoRA and "
            "rsLoRA); give such an adapter, or merge this one first and give model.path."
        )
    elif task != expected and not (task is None and spec.method.generates):
        kinds = {"SEQ_CLS": "a reward model's", "CAUSAL_LM": "a language model's"}
        remedy = "one of a language model" if spec.method.generates else "a reward model's, or none"
        kind = kinds.get(str(task), "of another kind of model")
        yield (
            f"{what}: it is {kind} (task_type {task}), and method={spec.method.name} needs {expected}; "
            f"give {remedy}."
        )


def _is_offline() -> bool:
    true_values = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads them
    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in true_values for name in variables)
