"""The door of a launched process.  python -m alignment_lab.entrypoints.worker RUN, with the ranks that a launcher leaves in the environment."""

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


def main(work: Callable[[RunDirectory], None] | None = None) -> None:
    """Do this process's part of the run. A failure is left where the launcher looks for it, and nothing is printed twice."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from ..actions import train

    handler = get_error_handler()
    handler.initialize()
    try:
        (work or train.work)(RunDirectory(Path(sys.argv[1])))
    except Interrupted:  # in order: run.json says so
        sys.stdout.flush()
        os._exit(0)
    except BaseException as error:
        handler.record_exception(
            UserError(str(error)) if isinstance(error, UserError) else error
        )  # an heir by the name that is looked for
        with suppress(OSError, KeyError):  # a process that does not end would hold the others
            left = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
            write_json(left, read_json(left))  # without secrets
        sys.stdout.flush()
        os._exit(1)  # at once: a group of processes that lost a member waits for it in vain
    collectives.destroy_process_group()
    sys.stdout.flush()
    os._exit(
        0
    )  # all is written: threads of libraries that nobody joined would end it with an abort now and then


if __name__ == "__main__":
    main()
