"""What wandb left on disk: its records, and up to which step they go.

The log is cut as LevelDB's: blocks of 32 KiB, pieces headed by checksum, length and whether more follows; 7 bytes come first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD, START = 32768, 7, 7  # bytes
WHOLE, FIRST, LAST = 1, 2, 4  # kinds of pieces; 3 is one in between


def records(file: Path) -> Iterator[Any]:
    """The records of a run's log by wandb's own definition, as far as they are whole: a killed process leaves half of one."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record

    raw = file.read_bytes()
    at, piece = START, b""
    while at + HEAD <= len(raw):
        if BLOCK - at % BLOCK < HEAD:  # too little for a head
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + HEAD])
        if at + HEAD + length > len(raw) or not WHOLE <= kind <= LAST:
            return
        piece = (b"" if kind in (WHOLE, FIRST) else piece) + raw[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (WHOLE, LAST):
            try:
                yield Record.FromString(piece)
            except DecodeError:
                return


def last_step(file: Path) -> int:
    """The last step of the history; -1 where there is none."""
    return max(
        (record.history.step.num for record in records(file) if record.HasField("history")), default=-1
    )
