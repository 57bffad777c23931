"""An experiment whose rows, weights, tokenizer and adapter lie in files of its own, and the ways in which
each of them may change under its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = [
    "method=dpo",
    "model=hub",
    "data=local",
    "parallel=lora",
    "parallel.device=cpu",
    "training.global_batch=4",
    "training.max_steps=4",
    "training.save_steps=2",
    "training.learning_rate=1e-3",
    "eval.rows=2",
    "eval.generations=0",
    "tracking=local",
]
Change = Callable[[Path], object]


def make_content(folder: Path) -> list[str]:
    """Write the files into `folder`; returns the overrides of the experiment."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from alignment_lab.config import Model, ModelSource, Shape
    from alignment_lab.models.locate import locate_model

    write_rows(folder / "rows" / "a.jsonl", range(12))
    write_rows(folder / "rows" / "b.jsonl", range(12, 24))
    write_rows(folder / "heldout.jsonl", range(50, 54))
    shape = Shape(
        layers=1, hidden=16, intermediate=32, heads=2, kv_heads=1, head_dim=8, vocabulary=49152, tied=True
    )
    random = locate_model(Model(name="small", source=ModelSource.random, shape=shape))
    shutil.copytree(random, folder / "model")
    (folder / "model" / "model.safetensors").chmod(0o644)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    scales = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 16}}
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **scales)
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    adapted.save_pretrained(folder / "adapter")
    return [
        *STEPS,
        f"data.path={folder / 'rows'}",
        f"data.eval_path={folder / 'heldout.jsonl'}",
        f"model.path={folder / 'model'}",
        f"model.init_adapter={folder / 'adapter'}",
    ]


def write_rows(file: Path, numbers: range) -> None:
    """Preference pairs of these numbers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": "No."} for n in numbers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(name: str, change: Callable[[list[str]], list[str]]) -> Change:
    """Change the lines of a file."""

    def apply(folder: Path) -> None:
        file = folder / name
        file.write_text("".join(change(file.read_text().splitlines(keepends=True))))

    return apply


def settings(name: str, **values: Any) -> Change:
    """Set keys of a JSON file; None removes one."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept, indent=1))

    return apply


def nudge(name: str) -> Change:
    """Flip a bit of the last weight; size and modification time are what they were."""

    def apply(folder: Path) -> None:
        file = folder / name
        status, content = file.stat(), bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    return apply


def swap(folder: Path) -> None:
    """Two files of rows trade their names."""
    first, second = folder / "rows" / "a.jsonl", folder / "rows" / "b.jsonl"
    first.rename(folder / "rows" / "c")
    second.rename(first)
    (folder / "rows" / "c").rename(second)


def add_token(folder: Path) -> None:
    """The tokenizer learns a word."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(["number"])
    tokenizer.save_pretrained(folder / "model")


def rewrite(folder: Path) -> None:
    """Every file is copied in its own place: another inode, another time."""
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        shutil.copy(file, file.with_name("copy"))
        file.with_name("copy").replace(file)


A, MODEL, ADAPTER = "rows/a.jsonl", "model/config.json", "adapter/adapter_config.json"
CHANGES: dict[str, tuple[Change, str]] = {  # and what the sentence must say
    "a row edited": (
        lines(A, lambda rows: [rows[0].replace("number", "NUMBER"), *rows[1:]]),
        "rows has other rows (a.jsonl changed; 24 rows before and now, not the same or in another order)",
    ),
    "a row added": (
        lines(A, lambda rows: [*rows, rows[0].replace("0", "99")]),
        "(a.jsonl changed; 24 rows before, 25 now)",
    ),
    "a row removed": (lines(A, lambda rows: rows[1:]), "(a.jsonl changed; 24 rows before, 23 now)"),
    "a row twice": (lines(A, lambda rows: [*rows, rows[-1]]), "(a.jsonl changed; 24 rows before, 25 now)"),
    "rows reordered": (lines(A, lambda rows: rows[::-1]), "(a.jsonl changed; 24 rows before and now"),
    "a column edited": (
        lines(A, lambda rows: [row.replace("No.", "Yes.") for row in rows]),
        "a.jsonl changed",
    ),
    "a row edited at the same size": (
        lines(A, lambda rows: [rows[0].replace("number", "nUmber"), *rows[1:]]),
        "a.jsonl changed",
    ),
    "two files swapped": (swap, "(a.jsonl changed, b.jsonl changed; 24 rows before and now"),
    "a file more in the folder": (
        lambda folder: write_rows(folder / "rows" / "c.jsonl", range(24, 26)),
        "(c.jsonl is new; 24 rows before, 26 now)",
    ),
    "a file less in the folder": (
        lambda folder: (folder / "rows" / "b.jsonl").unlink(),
        "(b.jsonl is gone; 24 rows before, 12 now)",
    ),
    "a file renamed to the end": (
        lambda folder: (folder / A).rename(folder / "rows" / "z.jsonl"),
        "(z.jsonl is new, a.jsonl is gone; 24 rows before and now",
    ),
    "a held-out row edited": (
        lines("heldout.jsonl", lambda rows: [rows[0].replace("number", "NUMBER"), *rows[1:]]),
        "heldout.jsonl has other rows (heldout.jsonl changed; 4 rows before and now",
    ),
    "a held-out row removed": (
        lines("heldout.jsonl", lambda rows: rows[1:]),
        "heldout.jsonl has other rows (heldout.jsonl changed; 4 rows before, 3 now)",
    ),
    "a token added": (add_token, "the tokenizer of model.path="),
    "another end token": (
        settings("model/tokenizer_config.json", eos_token="<|endoftext|>"),
        "the tokenizer of model.path=",
    ),
    "another chat template": (
        lines("model/chat_template.jinja", lambda text: ["{{ bos_token }}", *text]),
        "the chat template of model.path=",
    ),
    "one weight": (nudge("model/model.safetensors"), "model has changed (model.safetensors changed)"),
    "a constant of the model": (
        settings(MODEL, rms_norm_eps=1e-5),
        "model has changed (config.json changed)",
    ),
    "the model's positions": (
        settings(MODEL, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        "(config.json changed)",
    ),
    "one weight of the adapter": (
        nudge("adapter/adapter_model.safetensors"),
        "adapter has changed (adapter_model.safetensors changed)",
    ),
    "the adapter's alpha": (
        settings(ADAPTER, lora_alpha=16),
        "adapter has changed (adapter_config.json changed)",
    ),
    "the adapter's alpha_pattern": (
        settings(ADAPTER, alpha_pattern={"q_proj": 32}),
        "(adapter_config.json changed)",
    ),
    "the adapter's rank-stabilized scale": (
        settings(ADAPTER, use_rslora=True),
        "(adapter_config.json changed)",
    ),
}
NO_CHANGES: dict[str, Change] = {
    "files touched": lambda folder: [os.utime(file) for file in folder.rglob("*")],
    "files copied in their place": rewrite,
    "permissions": lambda folder: [file.chmod(0o600) for file in folder.rglob("*") if file.is_file()],
    "rows written with other spaces and keys in another order": lines(
        A,
        lambda rows: [json.dumps(dict(reversed(json.loads(row).items()))) + " \n" for row in rows],
    ),
    "a file renamed in its place": lambda folder: (folder / A).rename(folder / "rows" / "aa.jsonl"),
    "a note beside the rows": lambda folder: (folder / "rows" / "README.md").write_text("rows"),
    "a note beside the weights": lambda folder: (folder / "model" / "README.md").write_text("weights"),
    "the tokenizer written anew": settings("model/tokenizer.json"),
    "the model's config by another version": settings(MODEL, transformers_version="9.9", architectures=None),
    "the adapter's config by another version": settings(
        ADAPTER, peft_version="9.9", target_modules=["v_proj", "q_proj"], of_a_later_version=False
    ),
}
