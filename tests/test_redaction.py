"""No secret of a process reaches a file of its run, or its output; everything else stays as it is."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from alignment_lab.config import Model, compose, from_yaml, known_keys, to_plain, to_yaml
from alignment_lab.models.locate import describe_remote_code
from alignment_lab.runtime import provenance, redaction
from alignment_lab.runtime.files import read_json, write_json
from alignment_lab.runtime.redaction import is_secret_name, redact, redact_data
from alignment_lab.runtime.run_directory import RunDirectory

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
VALUE = "canary-of-the-tests-01"
ODD = 'p&w/"x y\\canary'
LINES = "-----BEGIN NOTHING-----\ncanaryLineOne0123456\ncanaryLineTwo0123456\n-----END NOTHING-----\n"
RUN = "abcdef0123456789" * 4  # assembled here, so that no secret scanner takes them for real
FORMATS = {
    "hub": "hf" + "_" + RUN[:34],
    "openai": "sk" + "-" + RUN[:40],
    "openai project": "sk" + "-proj-" + RUN[:40],
    "github": "gh" + "p_" + RUN[:36],
    "github fine-grained": "github" + "_pat_" + RUN[:40],
    "aws": "AK" + "IA" + "0123456789ABCDEF",
    "gitlab": "gl" + "pat-" + RUN[:20],
    "slack": "xo" + "xb-" + RUN[:20],
}


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process with no secrets but those of the test."""
    for name in [name for name in os.environ if is_secret_name(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(redaction, "_seen", {})
    for cached in (redaction._read_token_file, redaction._read_netrc):
        cached.cache_clear()


# ---- which names are secret


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "MY_SECRET",
        "DB_PASSWORD",
        "x_passwd",
        "GIT_CREDENTIALS",
        "AWS_ACCESS_KEY_ID",
    ],
)
def test_a_secret_is_recognized_by_its_name(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "max_new_tokens",
        "micro_tokens",
        "keys",
        "TOKENIZERS_PARALLELISM",
        "KEYBOARD",
        "HF_TOKEN_PATH",
        "eos_token",
    ],
)
def test_a_similar_name_is_not_a_secret(name):
    assert not is_secret_name(name)


def test_no_setting_of_the_lab_has_a_secrets_name():
    assert [key for key in known_keys() if is_secret_name(key.rpartition(".")[2])] == []


# ---- by value


@pytest.mark.parametrize("value", [VALUE, ODD], ids=["plain", "odd"])
@pytest.mark.parametrize(
    "encode", [str, quote, quote_plus, lambda value: quote(value, safe=""), json.dumps, repr]
)
def test_a_value_is_found_in_every_encoding(value, encode, monkeypatch):
    monkeypatch.setenv("MY_SECRET", value)
    assert (
        redact(f"before{encode(value)}after").replace('"', "").replace("'", "")
        == "before***MY_SECRET***after"
    )


def test_each_line_of_a_value_is_found(monkeypatch):
    monkeypatch.setenv("DEPLOY_KEY", LINES)
    assert redact("see canaryLineTwo0123456 there") == "see ***DEPLOY_KEY*** there"
    assert redact(LINES.strip()) == "***DEPLOY_KEY***"


HARMLESS = [
    "",
    "1",
    "true",
    "False",
    "none",
    "0.25",
    "short",
    "/etc/passwd",
    "~/.ssh/id",
    "./key.pem",
    "${oc.env:HF_TOKEN}",
]


@pytest.mark.parametrize("value", HARMLESS)
def test_a_harmless_value_is_never_replaced(value, monkeypatch):
    monkeypatch.setenv("SOME_KEY", value)
    text = f"of {value} and 1 true none /etc/passwd"
    assert redact(text) == text


@pytest.mark.parametrize("value", [value for value in HARMLESS if value != "short"])
def test_a_harmless_value_stays_next_to_its_name(value):
    assert redact(f"+hydra.job.env_set.SOME_KEY={value}") == f"+hydra.job.env_set.SOME_KEY={value}"


def test_a_variable_that_hydra_unsets_is_remembered(monkeypatch):
    monkeypatch.setenv("MY_SECRET", VALUE)
    redact("")
    monkeypatch.delenv("MY_SECRET")
    assert redact(VALUE) == "***MY_SECRET***"


def test_tokens_in_files_are_found(monkeypatch, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(f"{VALUE}\n")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password canaryOfNetrc\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert redact(f"{VALUE} canaryOfNetrc") == "***HF_TOKEN*** ***WANDB_API_KEY***"


# ---- by key, by format

ARGUMENTS = {
    "+hydra.job.env_set.MY_API_KEY=abc": "+hydra.job.env_set.MY_API_KEY=***",
    "hydra.job.env_set={HF_TOKEN:abc}": "hydra.job.env_set={HF_TOKEN:***}",
    "hydra.job.env_set={A:1,'HF_TOKEN': 'abc',B:2}": "hydra.job.env_set={A:1,'HF_TOKEN': '***',B:2}",
    "+any.api_token=abc": "+any.api_token=***",
    'MY_PASSWORD="a b" python train.py': 'MY_PASSWORD="***" python train.py',
    "error: +hydra.job.env_set.MY_API_KEY=abc: no": "error: +hydra.job.env_set.MY_API_KEY=*** no",
}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_short_value_is_replaced_next_to_its_key(argument):
    assert redact(argument) == ARGUMENTS[argument]


def test_a_value_from_the_command_line_is_replaced_everywhere(monkeypatch):
    monkeypatch.setattr(
        sys,
        "argv",
        ["train.py", f"+hydra.job.env_set.MY_API_KEY='{VALUE}'", "+a.db_password=a b", "method=dpo"],
    )
    assert (
        redact(f"{VALUE}; error: +a.db_password=a b: method=dpo")
        == "***MY_API_KEY***; error: +a.db_password=***: method=dpo"
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("around", ["{}", "say '{}'.", "a%3D{}&b", '"\\n{}"', "https://{}@host/x", "a,{}"])
def test_a_secret_is_recognized_by_its_format(name, around):
    assert redact(around.format(FORMATS[name])) == around.format("***")


def test_forty_hex_digits_are_a_key_only_next_to_its_name():
    digits = "c0ffee" * 6 + "beef"
    assert redact(f"api_key: {digits}") == "api_key: ***"
    assert redact(f"commit {digits}") == f"commit {digits}"


def test_a_password_in_a_url_is_replaced():
    assert (
        redact("clone https://user:pw@host/x from http://127.0.0.1:9")
        == "clone https://***@host/x from http://127.0.0.1:9"
    )


UNCHANGED = [
    "training.micro_tokens=512",
    "eval.max_new_tokens=4",
    "no such key; set it with key=OPTION",
    "cannot be read as KEY=VALUE; quote special characters, as in 'key=\"a, b\"'.",
    "tokenizer = load(token=token, sort_key=key)\n-    eos_token: str\n",
    'risk-1234567890abcdefghijklmn {"eos_token": "<|im_end|>"}',
    "outputs/2026-01-01/00-00-00-dpo-tiny c0ffee0000c0ffee0000c0ffee0000c0ffee0000",
]


@pytest.mark.parametrize("text", UNCHANGED)
def test_text_of_the_lab_is_unchanged(text, monkeypatch):
    monkeypatch.setenv("MY_SECRET", VALUE)
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *ARGUMENTS,
        *UNCHANGED,
        *FORMATS.values(),
        VALUE,
        f"***{VALUE}***",
        f"***MY_SECRET***{VALUE}",
        "PASSWORD",
        LINES,
    ],
)
def test_redaction_is_idempotent(text, monkeypatch):
    monkeypatch.setenv("MY_SECRET", VALUE)
    monkeypatch.setenv("PASSWORD", "PASSWORD")
    once = redact(text)
    assert redact(once) == once
    assert VALUE not in once


def test_plain_data_keeps_its_shape(monkeypatch):
    monkeypatch.setenv("MY_SECRET", VALUE)
    plain = {
        "a": [VALUE, 1, None, {"b": f"x{VALUE}"}],
        "env": {"HF_TOKEN": "abc", "OTHER": "abc"},
        "max_new_tokens": 4,
    }
    assert redact_data(plain) == {
        "a": ["***MY_SECRET***", 1, None, {"b": "x***MY_SECRET***"}],
        "env": {"HF_TOKEN": "***", "OTHER": "abc"},
        "max_new_tokens": 4,
    }
    assert redact_data(redact_data(plain)) == redact_data(plain)


# ---- where it is used


def test_an_experiment_is_written_without_secrets_and_is_the_same_when_read(composed, monkeypatch):
    monkeypatch.setenv("MY_SECRET", VALUE)
    monkeypatch.setenv("HF_TOKEN", "canaryOfTheHub")
    spec = composed(
        [f"name={VALUE}", "tracking.tags=[a,'${oc.env:HF_TOKEN}']", f"data.name={VALUE}", "model=tiny"]
    )
    text, run_id = to_yaml(spec), spec.run_id
    assert VALUE not in text and "canaryOfTheHub" not in text
    assert to_plain(spec)["tracking"]["tags"] == ["a", "***HF_TOKEN***"]
    monkeypatch.delenv("MY_SECRET")
    monkeypatch.setattr(redaction, "_seen", {})
    again = from_yaml(text)
    assert again.run_id == run_id
    assert to_yaml(again) == text


def test_a_password_that_is_a_word_of_the_lab_breaks_no_experiment(composed, monkeypatch):
    before = to_plain(composed(["method=apo_zero", "training.optim=adafactor"]))
    for name, value in {
        "A_PASSWORD": "embedded",
        "B_KEY": "apo_zero",
        "C_KEY": "adafactor",
        "D_KEY": "training",
    }.items():
        monkeypatch.setenv(name, value)
    spec = composed(["method=apo_zero", "training.optim=adafactor"])
    assert from_yaml(to_yaml(spec)).run_id == spec.run_id
    assert {**to_plain(spec), "name": 0, "data": 0, "model": 0} == {
        **before,
        "name": 0,
        "data": 0,
        "model": 0,
    }


def test_provenance_holds_the_command_the_diff_and_the_folder_without_secrets(monkeypatch):
    monkeypatch.setenv("MY_SECRET", VALUE)
    monkeypatch.setattr(
        sys, "argv", ["train.py", f"tracking.tags=[{VALUE}]", "+hydra.job.env_set.HF_TOKEN=abc"]
    )
    monkeypatch.setattr(provenance, "_run", lambda *command: f"+    password = '{VALUE}'\n")
    monkeypatch.setattr(os, "getcwd", lambda: f"/home/{VALUE}")
    collected = provenance.collect(0)
    assert collected["command"][1:] == [
        "train.py",
        "tracking.tags=[***MY_SECRET***]",
        "+hydra.job.env_set.HF_TOKEN=***",
    ]
    assert collected["git"]["diff"] == "+    password = '***MY_SECRET***'\n"
    assert VALUE not in json.dumps(collected)


def test_an_error_is_recorded_and_printed_without_secrets(monkeypatch, tmp_path, error_message):
    monkeypatch.setenv("MY_SECRET", VALUE)
    run = RunDirectory(tmp_path)
    run.start_attempt(run_id="abc", spec="")
    run.fail(f"no {VALUE} there")
    assert run.state()["error"] == "no ***MY_SECRET*** there"
    assert "***MY_SECRET***" in error_message(f"training.seed={VALUE}")


def test_a_workers_error_file_is_written_without_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_SECRET", VALUE)
    write_json(
        tmp_path / "error.json",
        {"message": {"message": VALUE, "extraInfo": {"py_callstack": f"Traceback\n {VALUE}\n"}}},
    )
    assert VALUE not in (tmp_path / "error.json").read_text()


def test_a_folder_is_named_without_secrets(monkeypatch):
    monkeypatch.setenv("MY_SECRET", VALUE)
    assert compose.run_folder_name("dpo tiny") == "dpo tiny"
    for name in (compose.run_folder_name(f"dpo-{VALUE}"), compose.folder_name(f"name={VALUE}")):
        assert VALUE not in name and "*" not in name


def test_the_origin_of_remote_code_is_printed(tmp_path):
    hub = Model(path="org/name", trust_remote_code=True)
    assert (
        describe_remote_code(hub, tmp_path) == "model.trust_remote_code=true: org/name has no code of its own"
    )
    write_json(
        tmp_path / "config.json",
        {"auto_map": {"AutoModel": "other/code--modeling.A", "AutoConfig": "configuration.B"}},
    )
    assert (
        describe_remote_code(hub, tmp_path)
        == "model.trust_remote_code=true: the code of org/name, other/code runs here, with your permissions"
    )


# ---- the command itself

SHORT = [
    "model=tiny", "data=embedded", "training.max_steps=2", "training.global_batch=4", "training.save_steps=1",
    "eval.rows=4", "eval.generations=2", "eval.max_new_tokens=4", "parallel.device=cpu",
]  # fmt: skip
ENVIRONMENT = {
    "HF_TOKEN": "canary01hub",
    "WANDB_API_KEY": "c0ffee" * 6 + "beef",
    "MY_SECRET": "canary03secret",
    "DB_PASSWORD": 'canary04&/"x y',
    "AWS_SECRET_ACCESS_KEY": "canary05/+aws=",
    "OPENAI_API_KEY": "canary06openai",
    "GIT_CREDENTIAL": "canary07git",
    "SOME_PASSWD": "canary08passwd",
    "DEPLOY_KEY": "canary09\ncanaryLineOfAKey0123\n",
}
FILES = {"hf/token": "canary10stored", ".netrc": "canary11netrc"}
OVERRIDDEN = {
    "ONE_API_KEY": "canary12one",
    "TWO_TOKEN": "canary13two",
    "SHORT_KEY": "can14",
    "YAML_SECRET": "canary15yaml",
}
CANARIES = [
    *ENVIRONMENT.values(),
    "canaryLineOfAKey0123",
    *FILES.values(),
    *OVERRIDDEN.values(),
    *(FORMATS[name] for name in list(FORMATS)[:5]),
]
OVERRIDES = [
    f"name={ENVIRONMENT['MY_SECRET']}",
    f"tracking.tags=[{FILES['hf/token']},{FILES['.netrc']},{FORMATS['hub']},{FORMATS['openai']},"
    f"{ENVIRONMENT['SOME_PASSWD']}]",
    f"tracking.project={ENVIRONMENT['OPENAI_API_KEY']}",
    f"tracking.group={FORMATS['github']}",
    f"data.name={FORMATS['openai project']}",
    f"+hydra.job.env_set.ONE_API_KEY={OVERRIDDEN['ONE_API_KEY']}",
    f"+hydra.job.env_set.TWO_TOKEN='{OVERRIDDEN['TWO_TOKEN']}'",
    f"+hydra.job.env_set.SHORT_KEY={OVERRIDDEN['SHORT_KEY']}",
]
CONFIG = f"""# @package _global_
model:
  name: ${{oc.env:DB_PASSWORD}}-${{oc.env:GIT_CREDENTIAL}}-{FORMATS["github fine-grained"]}
parallel:
  name: ${{oc.env:AWS_SECRET_ACCESS_KEY}}-${{oc.env:HF_TOKEN}}-${{oc.env:WANDB_API_KEY}}-\
${{oc.env:YAML_SECRET,none}}-${{oc.env:DEPLOY_KEY}}
hydra:
  job:
    env_set:
      YAML_SECRET: {OVERRIDDEN["YAML_SECRET"]}
"""


@pytest.fixture
def command(tmp_path):
    """`command("tracking=wandb")`: train.py with every canary.

    Returns working directory, exit code and output.
    """
    for name, content in {
        **FILES,
        ".netrc": f"machine api.wandb.ai login user password {FILES['.netrc']}\n",
    }.items():
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o600)
    recipes = tmp_path / "options" / "recipe"
    recipes.mkdir(parents=True)
    (recipes / "mine.yaml").write_text(CONFIG)
    workdir = tmp_path / "here"
    workdir.mkdir()

    def run(*arguments: str) -> tuple[Path, int, str]:
        arguments_and_flags = [*SHORT, "recipe=mine", *OVERRIDES, *arguments]
        flags = [
            "--config-dir",
            str(recipes.parent),
            *[word for word in arguments_and_flags if word.startswith("--")],
        ]
        settings = [word for word in arguments_and_flags if not word.startswith("--")]
        homes = {
            "HOME": str(tmp_path / "home"),
            "HF_HOME": str(tmp_path / "home" / "hf"),
            "TMPDIR": str(workdir),
            "HF_HUB_OFFLINE": "1",
        }
        process = subprocess.run(
            [sys.executable, str(TRAIN), *flags, *settings],
            cwd=workdir,
            env={**os.environ, **ENVIRONMENT, **homes},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return workdir, process.returncode, process.stdout + process.stderr

    return run


def file_contents(file: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed too; for wandb's log, each record as text."""
    raw = file.read_bytes()
    yield raw
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            yield from map(packed.read, packed.namelist())
    if file.suffix == ".wandb":
        yield from wandb_records(file)


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a wandb log, parsed by wandb's own protobuf definition, as text.

    The format is LevelDB's: blocks of 32 KiB, fragments with a header (checksum, length, type), after 7
    bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    raw = file.read_bytes()
    position, record = 7, b""
    while position + 7 <= len(raw):
        if 32768 - position % 32768 < 7:  # no room for a header
            position += 32768 - position % 32768
        _, length, fragment_type = struct.unpack("<IHB", raw[position : position + 7])
        record += raw[position + 7 : position + 7 + length]
        position += 7 + length
        if fragment_type in (1, 4):  # a full record, or its last fragment
            yield str(Record.FromString(record)).encode()
            record = b""


def find_leaks(folder: Path, output: str) -> list[str]:
    """Each canary in the output, in a file or in a file's name, and where."""
    canaries = {form: value for value in CANARIES for form in redaction._encodings(value)}
    leaks = [f"printed: {value}" for form, value in canaries.items() if form in output]
    for file in folder.rglob("*"):
        blobs = [str(file).encode(), *(file_contents(file) if file.is_file() else ())]
        leaks += [
            f"{file.relative_to(folder)}: {value}"
            for form, value in canaries.items()
            if any(form.encode() in blob for blob in blobs)
        ]
    return leaks


def test_a_run_leaves_no_secret_and_prints_none(command):
    folder, code, output = command("tracking=wandb")
    assert code == 0, output
    assert find_leaks(folder, output) == []
    (run,) = (RunDirectory(file.parent) for file in folder.rglob("run.json"))
    assert run.spec()["tracking"]["tags"] == [
        "***HF_TOKEN***",
        "***WANDB_API_KEY***",
        "***",
        "***",
        "***SOME_PASSWD***",
    ]
    assert "+hydra.job.env_set.SHORT_KEY=***" in read_json(run.provenance_file)["command"]
    (log,) = run.path.glob("wandb/offline-run-*/*.wandb")
    wandb_log = b"".join(wandb_records(log))
    assert b"***SOME_PASSWD***" in wandb_log
    assert not any(
        excluded in wandb_log
        for excluded in (b"--config-dir", b"requirements.txt", b"output.log", b"email", b"git {")
    )
    assert from_yaml(run.spec_file.read_text()).run_id == run.state()["id"]


def test_a_run_that_fails_leaves_no_secret_and_prints_none(command):
    broken_template = f"{{{{ raise_exception('{ENVIRONMENT['MY_SECRET']} {FORMATS['hub']}') }}}}"
    folder, code, output = command("tracking=wandb", f'model.chat_template="{broken_template}"')
    assert code == 2 and "the chat template refuses it: ***MY_SECRET*** ***" in output, output
    assert find_leaks(folder, output) == []


def test_a_sweep_that_fails_leaves_no_secret_and_prints_none(command):
    folder, code, output = command(
        "--multirun", "training.seed=1,2", "data=hub", f"data.path=nobody/{ENVIRONMENT['MY_SECRET']}"
    )
    assert code == 2, output
    assert find_leaks(folder, output) == []
    assert len(list(folder.rglob("run.json"))) == 2, output
    assert list(folder.rglob("multirun.yaml"))
