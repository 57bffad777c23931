"""One of a run's processes, started by a launcher.  python -m alignment_lab.entrypoints.worker RUN

The launcher leaves the ranks in the environment.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..distributed import collectives
from ..distributed.launch import LAUNCHER_PID
from ..runtime.errors import Interrupted, UserError
from ..runtime.files import read_json, write_json
from ..runtime.output import keep_output_writable
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest, terminate_with_parent
from .process_exit import exit_now


def main(work: Callable[[RunDirectory, StopRequest], None] | None = None) -> None:
    """Do this process's part of the run, or `work`.

    A failure is written to the file that the launcher reads.
    """
    keep_output_writable()
    _end_with_launcher()
    stop = StopRequest()
    with stop.listen():
        try:
            _work(work, stop)
        except Interrupted as reason:
            # In training all stopped in order, and run.json says so; before it the launcher ends the others
            exit_now(0 if stop.deferred else reason.code)
        exit_now(0)


def _work(work: Callable[[RunDirectory, StopRequest], None] | None, stop: StopRequest) -> None:
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from ..actions import train

    handler = get_error_handler()
    handler.initialize()
    try:
        (work or train.run_worker)(RunDirectory(Path(sys.argv[1])), stop)
    except Interrupted:
        raise
    except BaseException as error:
        # the launcher recognizes a mistake by the name of the class: a subclass becomes UserError itself
        handler.record_exception(UserError(str(error)) if isinstance(error, UserError) else error)
        with suppress(OSError, KeyError):  # a process that does not exit would block the others
            error_file = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
            write_json(error_file, read_json(error_file))  # redacted
        exit_now(1)  # a process group that lost a member waits for it forever
    collectives.destroy_process_group()


def _end_with_launcher() -> None:
    """A launcher that is gone, or goes, takes this process with it: nobody would stop it, and the same
    command starts others in its place.
    """
    terminate_with_parent()
    if os.environ.get(LAUNCHER_PID, str(os.getppid())) != str(os.getppid()):
        exit_now(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
