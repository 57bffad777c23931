"""What a file holds, told from its first bytes, and of text from its ending."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

ENDINGS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
}
PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
READABLE = (
    "a .json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt file (.gz and .zst as well), a folder or a "
    "pattern of such files, or what datasets' save_to_disk wrote"
)
HEAD_BYTES = 2**16
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
COLUMNAR = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
FOREIGN = {
    b"version https://git-lfs": "is a pointer of Git LFS and holds no rows; fetch them with `git lfs pull` "
    "in its folder, or with `hf download`.",
    b"PK\x03\x04": "is a zip archive or a workbook; unpack it, or save its sheet as CSV.",
    b"%PDF": "is a PDF; give {readable}.",
    b"SQLite format 3": "is a SQLite database; write its table as CSV or JSONL.",
    b"\xff\xfe": "is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8.",
    b"\xfe\xff": "is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8.",
    b"\x80\x04": "is a pickle, which is not opened, as it may run code; write it as JSONL.",
}
UNPACK_ERRORS = (OSError, EOFError, zlib.error)
BOM = b"\xef\xbb\xbf"


def ending(path: Path) -> str:
    """The ending of a file's name in small letters, with that of its compression: `.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        return "".join(suffixes) if suffixes[0] in ENDINGS else suffixes[-1]
    return suffixes[-1] if suffixes else ""


def named_kind(path: Path) -> str | None:
    """What the ending of a file's name says that it holds; None where it is not one of rows."""
    name = ending(path)
    return ENDINGS.get("." + name.split(".")[1]) if name else None


def open_bytes(path: Path, compression: str | None) -> IO[bytes]:
    """A file to be read from its beginning, unpacked. A damaged one raises a member of UNPACK_ERRORS."""
    if compression is None:
        return path.open("rb", buffering=2**20)
    import bz2
    import gzip

    open_packed: dict[str, Callable[[Path], Any]] = {"gzip": gzip.open, "bz2": bz2.open, "zstd": _open_zstd}
    return cast(IO[bytes], open_packed[compression](path))


def _open_zstd(path: Path) -> IO[bytes]:
    import io

    import pyarrow

    stream: Any = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
    return cast(IO[bytes], io.BufferedReader(stream, 2**20))


def compression_of(path: Path) -> str | None:
    """How a file is compressed, whatever its name says. Raises OSError."""
    with path.open("rb") as stream:
        head = stream.read(8)
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def read_head(path: Path, compression: str | None) -> bytes:
    """The first bytes of what it holds. Raises what an unpacker raises."""
    with open_bytes(path, compression) as stream:
        return stream.read(HEAD_BYTES)


def kind_of(path: Path, head: bytes) -> tuple[str | None, str]:
    """(kind, ""), or (None, why a file that begins with `head` cannot be read)."""
    for magic, kind in COLUMNAR.items():
        if head.startswith(magic):
            return kind, ""
    for magic, problem in FOREIGN.items():
        if head.startswith(magic):
            return None, problem.format(readable=READABLE)
    text = head.removeprefix(BOM).lstrip()
    if text[:14].lower().startswith((b"<!doctype html", b"<html")):
        return None, "is an HTML page, as a download that failed leaves it; fetch the file itself."
    if b"\0" in text.partition(b"\n")[0]:  # a later line of text may be damaged: it is one bad row
        return None, f"is neither text nor Parquet or Arrow; give {READABLE}."
    named = named_kind(path)
    if named in ("parquet", "arrow"):
        begin = f"begins with {shown(head)}" if head else "is empty"
        name = "Parquet" if named == "parquet" else "Arrow"
        return None, f"is no {name} file, whatever its name says: it {begin}."
    if named in ("csv", "tsv") and text.startswith((b'{"', b"[{")):
        return None, f"holds JSON, whatever its name says; rename it to {path.stem}.jsonl."
    if named:
        return named, ""
    if text.startswith((b"{", b"[")):
        return "json", ""
    return None, f"holds no rows that its ending or its content tells; give {READABLE}."


def shown(text: bytes) -> str:
    """The beginning of a text, quoted."""
    return repr(text[:40].decode("utf-8", "replace"))
