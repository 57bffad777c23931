"""What wandb left on disk: the records of a .wandb file, and the last step among them.

The format is LevelDB's log: blocks of 32 KiB with chunks, each with a header of checksum, length and kind. A
file header of 7 bytes comes first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK_SIZE, HEADER_SIZE, FILE_HEADER_SIZE = 32768, 7, 7  # bytes
FULL, FIRST, LAST = 1, 2, 4  # kinds of chunks; 3 is one in the middle of a record


def read_records(file: Path) -> Iterator[Any]:
    """The records of a run, as wandb's `Record` messages; stops at the first incomplete one.

    A killed process leaves a part of its last record.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record

    content = file.read_bytes()
    offset, record = FILE_HEADER_SIZE, b""
    while offset + HEADER_SIZE <= len(content):
        left_in_block = BLOCK_SIZE - offset % BLOCK_SIZE
        if left_in_block < HEADER_SIZE:  # padding
            offset += left_in_block
            continue
        start = offset + HEADER_SIZE
        _, length, kind = struct.unpack("<IHB", content[offset:start])
        if start + length > len(content) or not FULL <= kind <= LAST:
            return
        chunk = content[start : start + length]
        record = chunk if kind in (FULL, FIRST) else record + chunk
        offset = start + length
        if kind in (FULL, LAST):
            try:
                yield Record.FromString(record)
            except DecodeError:
                return


def last_history_step(file: Path) -> int:
    """The last step of the history; -1 where there is none."""
    steps = (record.history.step.num for record in read_records(file) if record.HasField("history"))
    return max(steps, default=-1)
