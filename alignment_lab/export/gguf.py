"""The exported model as one GGUF file, for llama.cpp and what is built on it: by llama.cpp's own converter.

The converter is a script of llama.cpp's repository, not a package: it is looked for, and never fetched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError
from ..runtime.redaction import redact

DEFAULT_TYPE = "bf16"
CONVERTED = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")  # that the converter itself writes
SCRIPT, PROGRAM, QUANTIZER = "convert_hf_to_gguf.py", "convert-hf-to-gguf", "llama-quantize"
OTHER_PROGRAMS = (QUANTIZER, "llama-cli", "llama-server")  # beside which a checkout's script is looked for
REPOSITORY = "https://github.com/ggml-org/llama.cpp"
LAST_LINES, MAX_REASON = 3, 400  # of what the converter said; characters of them


@dataclass(frozen=True)
class Conversion:
    """How a folder becomes a GGUF file."""

    type: str  # in lower case, as file names have it
    converter: list[str]  # command
    quantizer: str | None  # the program for types that the converter does not write


def plan_conversion(kind: str, given: Path | None) -> Conversion:
    """Find what the conversion to this type needs, before anything is computed.

    `given`: a checkout of llama.cpp, or its script. Raises UserError with what is missing.
    """
    kind = kind.lower()
    if not re.fullmatch(r"b?f\d\d|i?q\d\w*|tq\d_0|mxfp4\w*", kind):
        raise UserError(
            f"--gguf={kind}: is no type of GGUF; give one of {', '.join(CONVERTED)}, "
            f"or one of {QUANTIZER}, such as q4_k_m."
        )
    quantizer = None
    if kind not in CONVERTED:
        beside = [str(path) for path in _folders(given)]
        quantizer = shutil.which(QUANTIZER) or shutil.which(QUANTIZER, path=os.pathsep.join(beside))
        if quantizer is None:
            raise UserError(
                f"--gguf={kind}: needs {QUANTIZER} of llama.cpp, which is not in PATH; build or install "
                f"llama.cpp, or give one of {', '.join(CONVERTED)}."
            )
    return Conversion(kind, _find_converter(kind, given), quantizer)


def _folders(given: Path | None) -> Iterator[Path]:
    if given:
        folder = given if given.is_dir() else given.parent
        yield from (folder, folder / "build" / "bin")


def _find_converter(kind: str, given: Path | None) -> list[str]:
    if given:
        script = given / SCRIPT if given.is_dir() else given
        if not script.is_file():
            raise UserError(f"--llama-cpp={given}: has no {SCRIPT}; give a checkout of llama.cpp.")
        return [sys.executable, str(script)]
    if found := shutil.which(SCRIPT):
        return [sys.executable, found]  # the interpreter that has torch and transformers
    if packaged := shutil.which(PROGRAM):
        return [packaged]
    for program in filter(None, map(shutil.which, OTHER_PROGRAMS)):
        for folder in Path(program).resolve().parents[:3]:
            if (folder / SCRIPT).is_file():
                return [sys.executable, str(folder / SCRIPT)]
    raise UserError(
        f"--gguf={kind}: llama.cpp's converter is not installed: there is no {SCRIPT} in PATH; "
        f"get {REPOSITORY}, and give --llama-cpp=FOLDER."
    )


def convert(folder: Path, name: str, conversion: Conversion) -> dict[str, Any]:
    """Write NAME-TYPE.gguf into an exported folder; gives its name, type, bytes and tensors.

    Raises UserError where the converter cannot, with what it said last.
    """
    final = folder / f"{name}-{conversion.type}.gguf"
    written = folder / f".{name}.gguf" if conversion.quantizer else final
    outtype = "bf16" if conversion.quantizer else conversion.type
    options = ["--outfile", str(written), "--outtype", outtype, "--model-name", name]
    _run([*conversion.converter, str(folder), *options], conversion)
    if conversion.quantizer:
        _run([conversion.quantizer, str(written), str(final), conversion.type.upper()], conversion)
        written.unlink()
    if not final.is_file():
        raise UserError(f"--gguf={conversion.type}: the converter ended without writing {final.name}.")
    return {"file": final.name, "type": conversion.type, "bytes": final.stat().st_size, **_read(final)}


def _run(command: list[str], conversion: Conversion) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    if process.returncode == 0:
        return
    program = next(Path(word).name for word in command if word != sys.executable)
    if missing := re.search(r"No module named '([\w.]+)'", process.stderr):
        reason, remedy = f"it needs the Python module {missing[1]}", f"pip install {missing[1]}"
    else:
        said = (process.stderr.strip() or process.stdout.strip()).splitlines()[-LAST_LINES:]
        reason, remedy = redact(" ".join(" ".join(said).split()))[-MAX_REASON:], "leave --gguf out"
    raise UserError(f"--gguf={conversion.type}: {program} failed ({reason}); {remedy}.")


def _read(file: Path) -> dict[str, Any]:
    """What the file says of itself: that it can be read, how many tensors, and whether it has a template."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"{file.name}: what the converter wrote cannot be read ({error}).") from None
    return {"tensors": len(reader.tensors), "has_template": "tokenizer.chat_template" in reader.fields}
