"""python -m alignment_lab.export RUN.

The model of a run as one folder for plain transformers, with a model card.

Full weights are copied, or cast. An adapter is merged into the weights that the run was trained on,
dequantized where they were quantized. The change in outputs is measured, a fresh process loads the result,
and README.md says how the model was trained. --push uploads it to the Hub.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from ..runtime.caches import redirect_unwritable_caches
from ..runtime.command_line import path_argument
from ..runtime.errors import Interrupted, UserError
from ..runtime.files import file_digest, read_json, write_atomic, write_json
from ..runtime.folders import refuse_new_at_root, set_aside
from ..runtime.output import keep_output_writable
from ..runtime.publishing import files_in, publish_directory, replace_files
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from . import hub
from .card import model_card
from .write import FACTS_FILE, ExportFacts, describe, write_model

CARD = "README.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one run; 2 where that is impossible, with one sentence on stderr."""
    keep_output_writable()
    if line := redirect_unwritable_caches():
        print(line, file=sys.stderr)
    try:
        with StopRequest().listen():  # what was written so far is removed
            export(_parser().parse_args(arguments), Console(soft_wrap=True, highlight=False))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as reason:
        print(reason, file=sys.stderr)
        return reason.code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignment_lab.export", description="A run's model, merged, verified and described."
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
    parser.add_argument(
        "--base",
        type=path_argument,
        metavar="FOLDER",
        help="the weights under the adapter, if they were moved",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="to compute on")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload to this repository of the Hub")
    parser.add_argument("--revision", metavar="BRANCH", help="branch of that repository")
    parser.add_argument("--public", action="store_true", help="make the repository public (default: private)")
    return parser


def export(options: argparse.Namespace, console: Console) -> None:
    """Check, merge, write, verify, describe, upload. Raises UserError."""
    run = RunDirectory(options.run.expanduser())
    out = options.out.expanduser() if options.out else run.path / "export"
    _check(options, run, out)
    partial = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.partial")
    try:
        with _silence_libraries():
            facts = write_model(run, partial, dtype=options.dtype, base=options.base, device=options.device)
        write_atomic(partial / CARD, model_card(run, facts, options.push or str(out)))
        _publish(partial, out, facts)
    except OSError as error:
        raise UserError(
            f"--out={out}: could not be written ({error}); "
            "free space, fix the permissions, or give another folder."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    for line in [*describe(facts), f"{out}  {size / 1e6:,.1f} MB"]:
        console.print(line, markup=False)
    if options.push:
        message = f"{run.spec()['name']}, run {facts['id']}"
        url = hub.push(out, options.push, revision=options.revision, public=options.public, message=message)
        console.print(url, markup=False)


def _publish(partial: Path, out: Path, facts: ExportFacts) -> None:
    """Move the export into place, instead of an earlier one; files that no export wrote stay beside it."""
    new = {str(file.relative_to(partial)) for file in files_in(partial)}
    record = {"files": sorted(new), "card": file_digest(partial / CARD)}
    write_json(partial / FACTS_FILE, {**facts, **record})
    present = {str(file.relative_to(out)) for file in files_in(out)}
    old = {*(_earlier_export(out) or {}).get("files", new), FACTS_FILE} & present
    if present - old:
        for name in present & new - old:
            set_aside(out / name)
        replace_files(partial, out, old)
    else:
        publish_directory(partial, out.resolve())


def _earlier_export(out: Path) -> dict[str, Any] | None:
    """What export.json says of an earlier export there; None where it is none of the lab's."""
    try:
        facts = read_json(out / FACTS_FILE)
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and ExportFacts.__required_keys__ <= facts.keys() else None


@contextmanager
def _silence_libraries() -> Iterator[None]:
    """Hide warnings of the libraries: about new heads and missing kernels, which are expected here."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _check(options: argparse.Namespace, run: RunDirectory, out: Path) -> None:
    """Raise for mistakes that can be found before anything is loaded."""
    if not run.state_file.is_file() or not run.spec_file.is_file():
        raise UserError(
            f"{run.path}: is no run (no run.json and spec.yaml in it); "
            "give the output directory that train.py printed."
        )
    if not run.model.is_dir():
        raise UserError(
            f"{run.path}: has no model yet, its state is {run.state().get('state')}; "
            "let it finish with the same command."
        )
    refuse_new_at_root(out, f"--out={out}")
    earlier = _earlier_export(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and earlier is None)):
        raise UserError(f"--out={out}: exists and is no export; give another folder.")
    card = out / CARD
    if earlier and "card" in earlier and card.is_file() and file_digest(card) != earlier["card"]:
        raise UserError(
            f"--out={out}: its {CARD} was changed since it was exported, and would be written over; "
            "move it, or give another folder."
        )
    if options.base and not (options.base / "config.json").is_file():
        raise UserError(
            f"--base={options.base}: holds no model (a directory with config.json and safetensors); "
            "give another one."
        )
    if not options.push and (options.revision or options.public):
        option = f"--revision={options.revision}" if options.revision else "--public"
        raise UserError(f"{option}: is about the Hub; add --push=org/name.")
    if options.push:
        hub.check_push(options.push)


if __name__ == "__main__":
    sys.exit(main())
