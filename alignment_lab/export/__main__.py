"""python -m alignment_lab.export RUN.

The model of a run as one folder for plain transformers, with a model card.

Full weights are copied, or cast. An adapter is merged into the weights that the run was trained on,
dequantized where they were quantized, or exported as it is. The change in outputs is measured, a fresh
process loads the result, and README.md says how the model was trained. --push uploads it to the Hub.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ..runtime.caches import redirect_unwritable_caches
from ..runtime.errors import Interrupted, UserError
from ..runtime.files import file_digest, write_json
from ..runtime.folders import set_aside
from ..runtime.output import keep_output_writable, silenced_libraries
from ..runtime.publishing import files_in, publish_directory, replace_files
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from .arguments import check, earlier_export, parser
from .card import CARD, Card
from .gguf import plan_conversion
from .hub import Target, check_push, upload
from .names import cell_revision
from .write import FACTS_FILE, ExportFacts, WriteOptions, describe, write_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one run; 2 where that is impossible, with one sentence on stderr."""
    keep_output_writable()
    if line := redirect_unwritable_caches():
        print(line, file=sys.stderr)
    try:
        with StopRequest().listen():  # what was written so far is removed
            export(parser().parse_args(arguments), Console(soft_wrap=True, highlight=False))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as reason:
        print(reason, file=sys.stderr)
        return reason.code
    return 0


def export(options: argparse.Namespace, console: Console) -> None:
    """Check, merge, write, verify, describe, upload. Raises UserError."""
    run = RunDirectory(options.run.expanduser())
    out = options.out.expanduser() if options.out else run.path / "export"
    check(options, run, out)
    target, written = _target(options, run), _write_options(options)
    if facts := _intact_export(run, out, written) if target else None:
        console.print(f"{out}: is this export already, and is uploaded as it is", markup=False)
        _describe_again(run, out, facts, target)
    else:
        facts = _export(run, out, written, target)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    for line in [*describe(facts), f"{out}  {size / 1e6:,.1f} MB"]:
        console.print(line, markup=False)
    if target:
        _upload(run, out, target, facts, console)


def _target(options: argparse.Namespace, run: RunDirectory) -> Target | None:
    """Where it is uploaded to, known to be possible. A cell of a sweep has a branch of its own."""
    if not options.push:
        return None
    revision = options.revision or cell_revision(run)
    return check_push(Target(options.push, revision, private=not options.public))


def _write_options(options: argparse.Namespace) -> WriteOptions:
    gguf = plan_conversion(options.gguf, options.llama_cpp) if options.gguf else None
    return WriteOptions(
        options.dtype, options.base, options.device, options.adapter, options.max_shard_size, gguf
    )


def _export(run: RunDirectory, out: Path, options: WriteOptions, target: Target | None) -> ExportFacts:
    """Write the export beside `out`, and move it into place once it is complete."""
    partial = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.partial")
    try:
        with _silence_libraries():
            facts, base = write_model(run, partial, options)
        _card(run, facts, out, target, base).write(partial)
        _publish(partial, out, facts)
    except OSError as error:
        raise UserError(
            f"--out={out}: could not be written ({error}); "
            "free space, fix the permissions, or give another folder."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return facts


def _card(run: RunDirectory, facts: ExportFacts, out: Path, target: Target | None, base: Path | None) -> Card:
    if target is None:
        return Card(run, facts, out.resolve().name, base_folder=base)
    return Card(run, facts, target.repository, target.revision, base, ask_hub=True)


def _publish(partial: Path, out: Path, facts: ExportFacts) -> None:
    """Move the export into place, instead of an earlier one; files that no export wrote stay beside it."""
    new = {str(file.relative_to(partial)) for file in files_in(partial)}
    _write_record(partial, facts, new)
    present = {str(file.relative_to(out)) for file in files_in(out)}
    old = {*(earlier_export(out) or {}).get("files", new), FACTS_FILE} & present
    if present - old:
        for name in present & new - old:
            set_aside(out / name)
        replace_files(partial, out, old)
    else:
        publish_directory(partial, out.resolve())


def _write_record(folder: Path, facts: ExportFacts, names: set[str]) -> None:
    """export.json: the facts, the files with their bytes, and the card as it was written."""
    files = {name: (folder / name).stat().st_size for name in sorted(names - {FACTS_FILE})}
    write_json(folder / FACTS_FILE, {**facts, "files": files, "card": file_digest(folder / CARD)})


def _intact_export(run: RunDirectory, out: Path, options: WriteOptions) -> ExportFacts | None:
    """What `out` holds already, of the same model and with the same options: nothing is computed again."""
    earlier = earlier_export(out) or {}
    files = earlier.pop("files", None)
    if not isinstance(files, dict) or earlier.pop("made_from", None) != options.digest(run):
        return None
    if any(not (out / name).is_file() or (out / name).stat().st_size != size for name, size in files.items()):
        return None
    return ExportFacts(**{**earlier, "made_from": options.digest(run)})  # type: ignore[typeddict-item]


def _describe_again(run: RunDirectory, out: Path, facts: ExportFacts, target: Target | None) -> None:
    """The card of an export that is there says where it goes now."""
    record = earlier_export(out) or {}
    _card(run, facts, out, target, None).write(out)
    facts.pop("card", None)  # type: ignore[typeddict-item]
    _write_record(out, facts, set(record["files"]) | {CARD})


def _upload(run: RunDirectory, out: Path, target: Target, facts: ExportFacts, console: Console) -> None:
    """Upload what the export wrote, and nothing that lies beside it."""
    files = [*(earlier_export(out) or {})["files"], FACTS_FILE]
    size = sum((out / name).stat().st_size for name in files)
    where = f"{target.repository}{f', branch {target.revision}' if target.revision else ''}"
    console.print(f"uploading {len(files)} files, {size / 1e6:,.1f} MB, to {where}", markup=False)
    message = f"{run.spec()['name']}, run {facts['id']}"
    try:
        url = upload(
            out, files, target, message=message, notify=lambda line: console.print(line, markup=False)
        )
    except Interrupted as reason:
        again = shlex.join(["python", "-m", "alignment_lab.export", *sys.argv[1:]])
        raise Interrupted(
            reason.signal, f"{reason}; what arrived at the Hub stays, and this goes on: {again}"
        ) from None
    console.print(url, markup=False)


@contextmanager
def _silence_libraries() -> Iterator[None]:
    """Hide warnings of the libraries: about new heads and missing kernels, which are expected here."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with silenced_libraries():
        yield


if __name__ == "__main__":
    sys.exit(main())
