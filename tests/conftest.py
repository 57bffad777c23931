"""What tests share: an experiment composed in this process, the embedded tokenizer, rows in a file, the
command as a process.

No test reaches the network: the Hub's address is a closed port of this machine. None writes into the user's
cache but the embedded weights.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCRATCH = tempfile.mkdtemp(prefix="alignment_lab_tests_")
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
os.environ |= {
    "HF_DATASETS_CACHE": SCRATCH,
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "WANDB_MODE": "offline",
}
for name in ("HF_HUB_OFFLINE", "HYDRA_FULL_ERROR"):  # whoever has them set would see other sentences
    os.environ.pop(name, None)

from hydra import initialize_config_dir
from small_tokenizers import OTHERS, other_tokenizer

from alignment_lab.config import Experiment, compose
from alignment_lab.runtime.files import cache_directory

# Tokens and references of the tests' own; only the embedded weights, slow to convert, are the user's
CACHE = Path(SCRATCH) / "cache"
(cache_directory() / "models").mkdir(parents=True, exist_ok=True)
CACHE.mkdir()
(CACHE / "models").symlink_to((cache_directory() / "models").resolve())
os.environ["ALIGNMENT_LAB_CACHE"] = str(CACHE)  # the same one for children, whatever home they are given

ROOT = Path(__file__).resolve().parents[1]
IMPORT_PREFIX = "import time:"  # how a line of `python -X importtime` begins


@pytest.fixture(scope="session")
def composed() -> Callable[..., Experiment]:
    """`composed(["method=sft"])`: the experiment that `python train.py method=sft` would run; with a folder,
    its spec.yaml instead.
    """

    def make(overrides: Sequence[str] = (), folder: Path = compose.CONF, name: str = "config") -> Experiment:
        compose.register_with_hydra()
        with initialize_config_dir(str(folder), version_base="1.3"):
            return compose.compose_experiment(list(overrides), name)

    return make


@pytest.fixture
def error_message(
    composed: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """`error_message("beta=-1")`: the message that the user reads.

    Fails unless it is one line and the exit code is 2.
    """

    def read_message(overrides: str) -> str:
        arguments = overrides.split(" ")
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) as exit, compose.errors_as_sentences():
            composed(arguments)
        assert exit.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1 and message.endswith("\n")
        return message.removeprefix("error: ").rstrip("\n")

    return read_message


@dataclass
class CompletedCommand:
    """A process that has ended: its exit code, what it wrote, the CPU seconds that it took, the packages that
    it imported.
    """

    code: int
    output: str
    errors: list[str]
    seconds: float
    imported: set[str]


@pytest.fixture
def run_command(tmp_path: Path) -> Callable[..., CompletedCommand]:
    """`run_command("method=nope")`: `python train.py method=nope` in an empty directory."""

    def run(
        *arguments: str, script: Sequence[str] = (str(ROOT / "train.py"),), **environment: str
    ) -> CompletedCommand:
        folder = tmp_path / "here"
        folder.mkdir(exist_ok=True)
        inherited = {
            key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"
        }  # prepare() sets it
        command = [sys.executable, "-X", "importtime", *script, *arguments]
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=inherited | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        lines = (tmp_path / "err").read_text().splitlines()
        imported = {
            line.rpartition("|")[2].strip().partition(".")[0]
            for line in lines
            if line.startswith(IMPORT_PREFIX)
        }
        errors = [line for line in lines if not line.startswith(IMPORT_PREFIX)]
        return CompletedCommand(
            process.returncode,
            (tmp_path / "out").read_text(),
            errors,
            usage.ru_utime + usage.ru_stime,
            imported,
        )

    return run


@pytest.fixture
def call_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., CompletedCommand]:
    """`call_main("method=nope")`: the same in this process, in a fraction of the time. What it imports, and
    what it does to a terminal or as a child, only `run_command` shows.
    """
    from alignment_lab.entrypoints import command

    (tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: str) -> CompletedCommand:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
        for logger in (logging.getLogger(), logging.getLogger("hydra")):
            for handler in logger.handlers:
                if getattr(
                    getattr(handler, "stream", None), "closed", False
                ):  # the output of an earlier test
                    logger.removeHandler(handler)
        code = 0
        try:
            command.main()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        shown = capsys.readouterr()
        return CompletedCommand(code, shown.out, shown.err.splitlines(), 0.0, set())

    return call


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tokenizer of the embedded model: ChatML, no BOS of its own, <|im_end|> ends a turn."""
    from transformers import AutoTokenizer

    from alignment_lab.models.embedded import embedded_weights

    return AutoTokenizer.from_pretrained(embedded_weights())


@pytest.fixture(scope="session", params=["embedded", *OTHERS])
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    """The embedded model's tokenizer, and small ones of each family with the templates that the lab ships."""
    if request.param == "embedded":
        return request.getfixturevalue("tokenizer")
    template, ends = OTHERS[request.param]
    return other_tokenizer(template, **ends)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is written to compute in float32 (norms, rotations, softmax) computes in float64: only an error is
    larger than 1e-12.
    """
    import torch

    torch.set_default_dtype(torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """`write_rows(rows, "rows.jsonl")`: the path of a JSON Lines file (or, by its suffix, a JSON array) that
    holds them.
    """

    def write(rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(list(rows))
            if path.suffix == ".json"
            else "".join(json.dumps(row) + "\n" for row in rows)
        )
        return path

    return write
