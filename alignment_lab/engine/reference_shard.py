"""The file format of the reference cache: log-probabilities of many examples in a safetensors file.

Knows keys and numbers. Refuses to know how a shard is found, locked and published.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

Array = NDArray[Any]
DTYPES = {
    "keys": "<u1",  # [N, 16] bytes
    "ends": "<i8",  # [N] tokens up to the end of each row
    "logps": "<f4",  # [ends[-1]] nats
}
MIN_MAPPED_BYTES = 2**20  # smaller shards are read: a mapping costs a file descriptor


def encode_shard(logps: Mapping[bytes, Array], folder: str) -> bytes:
    """The bytes of a shard in the folder of this name; `logps` maps the key of each example to its nats."""
    tensors: dict[str, Array] = {
        "keys": np.frombuffer(b"".join(logps), np.uint8).reshape(-1, 16),
        "ends": np.cumsum([len(row) for row in logps.values()], dtype=np.int64),
        "logps": np.concatenate(list(logps.values())),
    }
    return save(tensors, {"digest": _digest(folder, tensors)})


def open_shard(path: Path, folder: str, *, mapped: bool) -> tuple[Array, Array, Array] | None:
    """(keys, ends, logps) of a shard; None where it is damaged or was written for another folder.

    It is memory-mapped if `mapped` and it has at least MIN_MAPPED_BYTES, else read.
    """
    data: mmap.mmap | bytes
    with path.open("rb") as file:
        mapped = mapped and os.fstat(file.fileno()).st_size >= MIN_MAPPED_BYTES
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else file.read()
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        payload = np.frombuffer(data, np.uint8)[start:]
        tensors = {
            name: payload[slice(*header[name]["data_offsets"])].view(dtype) for name, dtype in DTYPES.items()
        }
        if header["__metadata__"]["digest"] != _digest(folder, tensors):
            return None
    except Exception:  # damaged bytes raise a dozen types of errors here, all with one meaning
        return None
    if isinstance(data, mmap.mmap):
        data.madvise(mmap.MADV_DONTNEED)  # the digest read every page
    return tensors["keys"], tensors["ends"], tensors["logps"]


def _digest(folder: str, tensors: Mapping[str, Array]) -> str:
    """The sha256 of a shard's tensors and of its folder's name."""
    digest = hashlib.sha256(folder.encode())
    for name in DTYPES:
        digest.update(f"\n{name} {tensors[name].nbytes}\n".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()
