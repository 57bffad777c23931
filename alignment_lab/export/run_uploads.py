"""Uploads of a run: of its checkpoints while it trains, and of its model when it is finished.

Each is a process of its own (`upload_job`), so that neither a slow Hub nor a failure holds the run up or
harms it. What it reads are hard links: a checkpoint may be deleted meanwhile.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..runtime.files import read_kept, utc_now, write_json
from ..runtime.paths import pythonpath
from ..runtime.run_directory import RunDirectory
from .hub import Target

STAGED = "checkpoint-upload"  # in the run's folder of what is not published, which clears it
JOB, RESULT, LOG, MODEL = "job.json", "result.json", "log.txt", "model"
NOT_OF_THE_MODEL = ("optimizer-*", "rng_state_*", "trainer_state.json", "manifest.json", "README.md")
POLL_SECONDS = 0.2
END_SECONDS = 5.0  # that a process may take to end


@dataclass
class RunUploads:
    """The uploads of one run, one at a time."""

    run: RunDirectory
    target: Target
    name: str  # of the experiment
    process: subprocess.Popen[bytes] | None = None
    step: int | None = None  # of the checkpoint that is being uploaded
    saves: list[dict[str, Any]] = field(default_factory=list)  # what became of each checkpoint

    def start(self, folder: Path, step: int | None) -> bool:
        """Start to upload what a run saved in `folder`; False where the upload before is not done yet."""
        self._collect()
        if self.process:
            self._note(step, skipped="the upload before it was not done")
            return False
        job = self.run.partial / STAGED
        shutil.rmtree(job, ignore_errors=True)
        _link_tree(folder, job / MODEL)
        at = f", step {step}" if step is not None else ""
        message = f"{self.name}, run {self.run.state().get('id')}{at}"
        write_json(
            job / JOB,
            {
                "run": str(self.run.path.absolute()),
                "target": asdict(self.target),
                "step": step,
                "message": message,
            },
        )
        variables = {"PYTHONPATH": pythonpath(), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        with (job / LOG).open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "alignment_lab.export.upload_job", str(job)],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the run, which ends it in order
            )
        self.step = step
        atexit.register(self.stop)
        return True

    def start_checkpoint(self, step: int) -> None:
        """Start to upload the checkpoint of a step. Whatever fails is noted, and never raised."""
        try:
            self.start(self.run.checkpoints / f"checkpoint-{step}", step)
        except OSError as error:
            self._note(step, error=f"{self.target}: {error}.")

    def wait(self, is_stopped: Callable[[], bool]) -> dict[str, Any]:
        """Wait for the upload: `{"url": ...}`, or `{"error": ...}` with one sentence."""
        while self.process and self.process.poll() is None:
            if is_stopped():
                self.stop()
                return {"error": f"{self.target}: the upload was interrupted."}
            time.sleep(POLL_SECONDS)
        return self._take_result()

    def stop(self) -> None:
        """End an upload that is under way: what arrived at the Hub stays there."""
        self._collect()
        if self.process:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
            self.process.kill()
            self.process.wait()
            self.process = None
            self._note(self.step, skipped="training ended before it was uploaded")
        shutil.rmtree(self.run.partial / STAGED, ignore_errors=True)
        atexit.unregister(self.stop)

    def _collect(self) -> None:
        """Note the result of an upload that is done."""
        if self.process and self.process.poll() is not None:
            self._note(self.step, **self._take_result())

    def _take_result(self) -> dict[str, Any]:
        code, self.process = (self.process.returncode if self.process else None), None
        result = read_kept(self.run.partial / STAGED / RESULT)
        if isinstance(result, dict):
            return result
        return {"error": f"{self.target}: the process that uploads ended with code {code}."}

    def _note(self, step: int | None, **what: Any) -> None:
        self.saves.append({"step": step, "at": utc_now(), **what})
        with suppress(OSError):  # a full disk is no reason to end the run
            self.run.update_state(uploads=self.saves)


def _link_tree(folder: Path, copy: Path) -> None:
    """The files of a model in another folder, without their bytes where the file system can link them."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    ignored = shutil.ignore_patterns(*NOT_OF_THE_MODEL)
    shutil.copytree(folder, copy, ignore=ignored, copy_function=link)
