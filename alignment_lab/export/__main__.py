"""python -m alignment_lab.export RUN: the model of a run as one folder for plain transformers, proved and described.

Full weights are copied, or cast; an adapter is merged into the weights that it was trained on, dequantized where they were quantized. What
that changes is measured, a fresh process loads the result, and README.md says how it was made. --push sends it to the Hub.
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

from rich.console import Console

from ..runtime.errors import UserError
from ..runtime.files import publish_directory, write_atomic
from ..runtime.run_directory import RunDirectory
from . import hub
from .card import card
from .write import MARK, in_words, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one run; 2 where it cannot be, with one sentence on stderr."""
    try:
        export(_parser().parse_args(arguments), Console(soft_wrap=True, highlight=False))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignment_lab.export", description="A run's model, merged, proved and described."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory: outputs/DATE/TIME-NAME")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the model goes (RUN/export)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of the weights (full ones: as they lie; merged ones: float32)",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="the weights under the adapter, if they are not where they were",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where it is computed"
    )
    parser.add_argument("--push", metavar="ORG/NAME", help="send it to this repository of the Hub")
    parser.add_argument("--revision", metavar="BRANCH", help="of that repository")
    parser.add_argument("--public", action="store_true", help="for all to see; private otherwise")
    return parser


def export(asked: argparse.Namespace, console: Console) -> None:
    """Check, merge, write, prove, describe, push. Raises UserError."""
    run, out = RunDirectory(asked.run), asked.out or asked.run / "export"
    _check(asked, run, out)
    partial = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.partial")
    try:
        with _quiet():
            facts = write(run, partial, dtype=asked.dtype, base=asked.base, device=asked.device)
        write_atomic(partial / "README.md", card(run, facts, asked.push or str(out)))
        publish_directory(partial, out)
    except OSError as error:
        raise UserError(
            f"--out={out}: could not be written ({error}); make room, mend the permissions, or give another folder."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    for line in [*in_words(facts), f"{out}  {size / 1e6:,.1f} MB"]:
        console.print(line, markup=False)
    if asked.push:
        message = f"{run.spec()['name']}, run {facts['id']}"
        console.print(
            hub.push(out, asked.push, revision=asked.revision, public=asked.public, message=message),
            markup=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on the terminal from the libraries: they warn of heads that are new and of kernels that are not there, as they should be."""
    from transformers.utils import logging as progress

    progress.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _check(asked: argparse.Namespace, run: RunDirectory, out: Path) -> None:
    """What can be wrong, before anything is loaded."""
    if not run.state_file.is_file() or not run.spec_file.is_file():
        raise UserError(
            f"{run.path}: is no run (no run.json and spec.yaml in it); give what train.py printed as its output directory."
        )
    if not run.model.is_dir():
        raise UserError(
            f"{run.path}: has no model yet, its state is {run.state().get('state')}; let it finish with the same command."
        )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise UserError(f"--out={out}: something else lies there; give another folder.")
    if asked.base and not (asked.base / "config.json").is_file():
        raise UserError(
            f"--base={asked.base}: no model lies there (a directory with config.json and safetensors); give another one."
        )
    if not asked.push and (asked.revision or asked.public):
        which = f"--revision={asked.revision}" if asked.revision else "--public"
        raise UserError(f"{which}: is about the Hub; add --push=org/name.")
    if asked.push:
        hub.check(asked.push)


if __name__ == "__main__":
    sys.exit(main())
