"""The command line of an export, and the mistakes that can be found before anything is loaded."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ..runtime.command_line import path_argument
from ..runtime.errors import UserError
from ..runtime.files import file_digest, read_json
from ..runtime.folders import refuse_new_at_root
from ..runtime.run_directory import EVALUATION, RunDirectory
from .card import CARD
from .gguf import DEFAULT_TYPE
from .write import FACTS_FILE, ExportFacts

_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]?i?B", re.IGNORECASE)  # as transformers reads it


def parser() -> argparse.ArgumentParser:
    """Options of `python -m alignment_lab.export`."""
    parser = argparse.ArgumentParser(
        prog="python -m alignment_lab.export",
        description="A run's model, merged, verified, described and uploaded.",
    )
    parser.add_argument(
        "run", type=path_argument, metavar="RUN", help="a run directory: outputs/DATE/TIME-NAME"
    )
    parser.add_argument(
        "--out", type=path_argument, metavar="FOLDER", help="where the model goes (RUN/export)"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of the weights (default: full weights as they are, merged ones in float32)",
    )
    parser.add_argument("--adapter", action="store_true", help="the adapter alone, not merged into its base")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="of a file of weights, such as 2GB")
    parser.add_argument(
        "--base",
        type=path_argument,
        metavar="FOLDER",
        help="the weights under the adapter, if they were moved",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="to compute on")
    parser.add_argument(
        "--gguf",
        metavar="TYPE",
        nargs="?",
        const=DEFAULT_TYPE,
        help=f"also as GGUF, by llama.cpp's converter: f32, f16, bf16, q8_0, q4_k_m, ... ({DEFAULT_TYPE})",
    )
    parser.add_argument(
        "--llama-cpp",
        type=path_argument,
        metavar="FOLDER",
        help="a checkout of llama.cpp, if its converter is not in PATH",
    )
    parser.add_argument("--push", metavar="ORG/NAME", help="upload to this repository of the Hub")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch of that repository (a sweep's cell: one of its name)"
    )
    parser.add_argument("--public", action="store_true", help="make the repository public (default: private)")
    return parser


def check(options: argparse.Namespace, run: RunDirectory, out: Path) -> None:
    """Raise UserError for mistakes that can be found before anything is loaded."""
    if not run.state_file.is_file() or not run.spec_file.is_file():
        raise UserError(
            f"{run.path}: is no run (no run.json and spec.yaml in it); "
            "give the output directory that train.py printed."
        )
    if run.state().get("kind") == EVALUATION:
        raise UserError(f"{run.path}: is an evaluation, which has no model; give the run that it measured.")
    if not run.model.is_dir():
        raise UserError(
            f"{run.path}: has no model yet, its state is {run.state().get('state')}; "
            "let it finish with the same command."
        )
    _check_out(out)
    _check_weights(options, run)
    if not options.push and (options.revision or options.public):
        option = f"--revision={options.revision}" if options.revision else "--public"
        raise UserError(f"{option}: is about the Hub; add --push=org/name.")


def _check_out(out: Path) -> None:
    refuse_new_at_root(out, f"--out={out}")
    earlier = earlier_export(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and earlier is None)):
        raise UserError(f"--out={out}: exists and is no export; give another folder.")
    card = out / CARD
    if earlier and "card" in earlier and card.is_file() and file_digest(card) != earlier["card"]:
        raise UserError(
            f"--out={out}: its {CARD} was changed since it was exported, and would be written over; "
            "move it, or give another folder."
        )


def _check_weights(options: argparse.Namespace, run: RunDirectory) -> None:
    """What is asked of the weights must be possible with those that there are."""
    adapter = read_json(run.model / "adapter_config.json")
    if options.base and not (options.base / "config.json").is_file():
        raise UserError(
            f"--base={options.base}: holds no model (a directory with config.json and safetensors); "
            "give another one."
        )
    if options.adapter and not adapter:
        raise UserError(f"--adapter: {run.path} trained every weight, and has none; leave it out.")
    if options.adapter:
        unmerged = {"dtype": options.dtype, "max-shard-size": options.max_shard_size, "gguf": options.gguf}
        for name, value in unmerged.items():
            if value:
                raise UserError(f"--{name}={value}: is about merged weights; leave --adapter or it out.")
    size = options.max_shard_size
    if size and not _SIZE.fullmatch(size):
        raise UserError(f"--max-shard-size={size}: is no size; give one such as 2GB or 500MB.")
    if options.llama_cpp and not options.gguf:
        raise UserError(f"--llama-cpp={options.llama_cpp}: has no effect alone; add --gguf.")
    architectures = (read_json(run.model / "config.json") or {}).get("architectures") or [""]
    scores = (adapter or {}).get("task_type") == "SEQ_CLS" or architectures[0].endswith("Classification")
    if options.gguf and scores:
        raise UserError(
            f"--gguf={options.gguf}: {run.path} is a reward model, whose head llama.cpp does not read; "
            "leave it out."
        )


def earlier_export(out: Path) -> dict[str, Any] | None:
    """What export.json says of an earlier export there; None where it is none of the lab's."""
    try:
        facts = read_json(out / FACTS_FILE)
    except (OSError, ValueError):
        return None
    required = ExportFacts.__required_keys__ - NEW_FACTS
    return facts if isinstance(facts, dict) and required <= facts.keys() else None


NEW_FACTS = {"step", "is_merged", "gguf", "made_from"}  # that exports of older versions of the lab lack
