"""python -m alignment_lab.data build data=... out=FOLDER.

The rows of an experiment's data as one folder, with a digest of its content: settings are those of train.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..config.compose import errors_as_sentences, load_experiment
from ..runtime.caches import redirect_unwritable_caches
from ..runtime.errors import UserError
from ..runtime.output import keep_output_writable
from ..runtime.signals import StopRequest
from . import readers, workers
from .build import build
from .mixture import describe_dropped, describe_unused, source_table

USAGE = """python -m alignment_lab.data build [KEY=VALUE ...] out=FOLDER [workers=N] [--config-dir FOLDER]

Writes the rows to train on and those held out as JSON lines, with manifest.yaml: counts of each source, and a
digest of the content. KEY=VALUE are train.py's: data=..., data.sources..., and the method whose rows they are.

  python -m alignment_lab.data build method=dpo data=mixture +data/source@data.sources.uf=ultrafeedback_binarized out=mix
  python train.py method=dpo data=local data.path=mix data.eval_split=test
"""  # noqa: E501


def main(arguments: Sequence[str] | None = None) -> int:
    """Build one mixture; 2 where that is impossible, with one sentence on stderr."""
    keep_output_writable()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"-h", "--help"} & {*words}:
        print(USAGE, end="", file=sys.stderr if not words else sys.stdout)
        return 0 if words else 2
    if line := redirect_unwritable_caches():
        print(line, file=sys.stderr)
    with errors_as_sentences(), StopRequest().listen():  # what was written so far is removed
        _build(words, Console(soft_wrap=True, highlight=False))
    return 0


def _build(words: list[str], console: Console) -> None:
    if words[0] != "build":
        raise UserError(f"{words[0]}: no such command; there is build, as --help says.")
    overrides, own, config_dir = _own_settings(words[1:])
    if not own.get("out"):
        raise UserError("out: say where the folder goes: out=FOLDER.")
    _use_workers(own.get("workers"))
    spec = load_experiment(overrides, config_dir=config_dir)
    out = Path(own["out"]).expanduser()
    splits, manifest = build(spec, out)
    table = source_table(splits.sources)
    if table:
        console.print(table)
    lines = (
        *readers.unread_splits(spec.data),
        *describe_unused(splits.unused),
        *describe_dropped(splits.sources),
        *splits.findings,
    )
    for line in lines:
        console.print(line, markup=False)
    rows = manifest["rows"]
    console.print(f"{out}: {rows['train']:,} rows to train on, {rows['test']:,} held out", markup=False)
    console.print(f"digest {manifest['digest']}")
    heldout = " data.eval_split=test" if rows["test"] else ""
    console.print(
        f"python train.py method={spec.method.name} data=local data.path={out}{heldout}", markup=False
    )


def _own_settings(words: list[str]) -> tuple[list[str], dict[str, str], str | None]:
    """(overrides of the experiment, `out` and `workers`, --config-dir)."""
    overrides: list[str] = []
    own: dict[str, str] = {}
    config_dir = None
    rest = iter(words)
    for word in rest:
        key, _, value = word.partition("=")
        if key in ("out", "workers"):
            own[key] = value
        elif key in ("--config-dir", "-cd"):
            config_dir = value or next(rest, None)
        elif word.startswith("-"):
            raise UserError(f"{word}: no such option; --help lists what there is.")
        else:
            overrides.append(word)
    return overrides, own, config_dir


def _use_workers(count: str | None) -> None:
    """Convert in so many processes. Raises UserError for anything but a whole number above 0."""
    if count is None:
        return
    if not count.isdecimal() or int(count) < 1:
        raise UserError(f"workers={count}: give a whole number above 0.")
    workers.use_processes(int(count))


if __name__ == "__main__":
    sys.exit(main())
