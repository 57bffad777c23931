"""One of a run's processes, started by a launcher.  python -m alignment_lab.entrypoints.worker RUN

The launcher leaves the ranks in the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..distributed import collectives
from ..runtime.errors import Interrupted, UserError
from ..runtime.files import read_json, write_json
from ..runtime.run_directory import RunDirectory
from .process_exit import exit_now


def main(work: Callable[[RunDirectory], None] | None = None) -> None:
    """Do this process's part of the run, or `work`.

    A failure is written to the file that the launcher reads.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from ..actions import train

    handler = get_error_handler()
    handler.initialize()
    try:
        (work or train.run_worker)(RunDirectory(Path(sys.argv[1])))
    except Interrupted:  # stopped in order: run.json says so
        exit_now(0)
    except BaseException as error:
        # the launcher recognizes a mistake by the name of the class: a subclass becomes UserError itself
        handler.record_exception(UserError(str(error)) if isinstance(error, UserError) else error)
        with suppress(OSError, KeyError):  # a process that does not exit would block the others
            error_file = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
            write_json(error_file, read_json(error_file))  # redacted
        exit_now(1)  # a process group that lost a member waits for it forever
    collectives.destroy_process_group()
    exit_now(0)


if __name__ == "__main__":
    main()
