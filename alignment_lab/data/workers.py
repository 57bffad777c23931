"""Work that several processes share: as many as there are cores, the results in the order of the work."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ..runtime.hardware import available_cores
from ..runtime.signals import terminate_with_parent

if TYPE_CHECKING:
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")
WAITING = 2  # pieces of work for each process that are begun before the first of them is taken

_function: Callable[[Any], Any] | None = None  # of a worker
_processes: int | None = None  # that were asked for


def use_processes(count: int) -> None:
    """Share work among so many processes from here on, instead of one for each core."""
    global _processes
    _processes = count


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int | None = None
) -> Iterator[Result]:
    """`function` of each item, in their order, whatever the number of processes.

    Processes are forked: `function` may be a closure; items and results are pickled. No more than a few items
    of each process are in memory at a time. An error in a process is raised here.
    """
    count = processes or _processes or available_cores()
    if count < 2:
        yield from map(function, items)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    waiting: deque[Future[Result]] = deque()
    pool = ProcessPoolExecutor(count, get_context("fork"), initializer=_start_worker, initargs=(function,))
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= WAITING * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the process that waits for this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    terminate_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork, and cores are shared
    _function = function


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)
