"""What training.push_to_hub does: a run's checkpoints and its model are uploaded to the Hub.

A mistake is found before anything is loaded. After that nothing of it ends a run, or holds it up.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import Any

from rich.console import Console

from ..config import Experiment, HubStrategy
from ..export.hub import HubError, Target, check_push
from ..export.names import cell_revision, file_name
from ..export.run_uploads import RunUploads
from ..runtime.files import read_json, write_json
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest


def upload_target(spec: Experiment, run: RunDirectory) -> Target:
    """Where this run is uploaded to: a cell of a sweep to a branch of its own, unless one is named."""
    training = spec.training
    return Target(
        training.hub_model_id or file_name(spec.name),
        training.hub_revision or cell_revision(run),
        private=training.hub_private_repo,
        option="training.hub_model_id",
        public_option="training.hub_private_repo=false",
    )


def check_uploads(spec: Experiment, run: RunDirectory) -> str | None:
    """Raise UserError where the Hub would refuse every upload; a line where it cannot be asked now."""
    if not spec.training.push_to_hub:
        return None
    try:
        check_push(upload_target(spec, run))
    except HubError as error:
        if not error.is_passing:
            raise
        return f"{str(error).rstrip('.')}; the run goes on, and its upload is tried at the end"
    return None


def checkpoint_uploads(spec: Experiment, run: RunDirectory) -> RunUploads | None:
    """The uploads of the run's checkpoints; None where they are not asked for."""
    training = spec.training
    if not training.push_to_hub or training.hub_strategy is HubStrategy.end:
        return None
    return RunUploads(run, upload_target(spec, run), spec.name)


def upload_model(spec: Experiment, run: RunDirectory, console: Console, stop: StopRequest) -> None:
    """Upload the model of a finished run; what became of it goes to the terminal and to report.json.

    Nothing that fails here harms the run, or is an error of the command.
    """
    if not spec.training.push_to_hub or not run.model.is_dir():
        return
    target = upload_target(spec, run)
    uploads = RunUploads(run, target, spec.name)
    where = f"{target.repository}{f', branch {target.revision}' if target.revision else ''}"
    console.print(f"uploading the model to {where}", markup=False, highlight=False, soft_wrap=True)
    try:
        uploads.start(run.model, None)
        result = uploads.wait(lambda: stop.signal is not None)
    except OSError as error:  # no room for the copy, no process
        result = {"error": f"{target}: {error}."}
    uploads.stop()
    with suppress(OSError):
        run.partial.rmdir()
    _record(run, target, result)
    if "error" in result:
        go_on = f"the run is complete, and this uploads it: {_command(run, target)}"
        told = f"not uploaded: {result['error'].rstrip('.')}; {go_on}"
    else:
        told = f"uploaded: {result['url']}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)


def _record(run: RunDirectory, target: Target, result: dict[str, Any]) -> None:
    saves = run.state().get("uploads") or []
    uploaded = {"repository": target.repository, "revision": target.revision, **result, "saves": saves}
    with suppress(OSError):
        write_json(run.report_file, {**(run.report() or {}), "push_to_hub": uploaded})


def _command(run: RunDirectory, target: Target) -> str:
    words = ["python", "-m", "alignment_lab.export", str(run.path), "--push", target.repository]
    words += ["--adapter"] if read_json(run.model / "adapter_config.json") else []
    words += ["--revision", target.revision] if target.revision else []
    return shlex.join([*words, *([] if target.private else ["--public"])])
