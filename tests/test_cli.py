"""train.py as a user calls it: a sweep, its report, a run from its own spec, and what a mistake leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignment_lab.entrypoints.command import absolute_config_path, overrides_last
from alignment_lab.runtime.command_line import typed_command
from alignment_lab.runtime.files import read_json
from alignment_lab.runtime.run_directory import RunDirectory

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
SHORT = [
    "model=tiny",
    "parallel.device=cpu",
    "training.max_steps=2",
    "training.global_batch=2",
    "eval.rows=4",
    "eval.generations=2",
]


def call(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run Python with these arguments, without the caller's wandb key."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two methods, tracked by wandb without a key."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = [
        "--multirun",
        "method=dpo,sft",
        *SHORT,
        "eval.max_new_tokens=4",
        "tracking=wandb",
        "hydra.sweep.dir=cells",
    ]
    found = call(
        str(TRAIN),
        *arguments,
        cwd=folder,
        HOME=str(folder),
        ALIGNMENT_LAB_CACHE=os.environ["ALIGNMENT_LAB_CACHE"],
    )
    assert found.returncode == 0, found.stderr
    return folder / "cells", found.stdout


def test_a_sweep_has_a_folder_a_cell_named_by_what_is_swept(sweep):
    folder, _ = sweep
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["method=dpo", "method=sft"]
    assert [RunDirectory(folder / name).state()["state"] for name in ("method=dpo", "method=sft")] == [
        "finished"
    ] * 2


def test_wandb_without_a_key_is_offline_and_says_how_to_send(sweep):
    folder, said = sweep
    assert "wandb sync" in said
    for cell in ("method=dpo", "method=sft"):
        (offline,) = (folder / cell / "wandb").glob("offline-run-*")
        assert RunDirectory(folder / cell).state()["id"] in offline.name
        assert list(offline.glob("*.wandb"))


def test_the_report_of_a_sweep(sweep):
    folder, _ = sweep
    found = call("-m", "alignment_lab.report", str(folder), cwd=TRAIN.parent)
    assert found.returncode == 0, found.stderr
    assert "dpo" in found.stdout
    assert "sft" in found.stdout
    assert "different data" not in found.stdout  # both methods saw the same rows
    assert len(read_json(folder / "report.json")["cells"]) == 2
    assert (folder / "report.html").stat().st_size > 10_000


def test_a_run_says_what_it_came_to(sweep):
    _, said = sweep
    for phrase in (
        "before",
        "after",
        "eval_implicit_rewards/",
        "answers/correct",
        "report.html",
        "held-out prompts",
    ):
        assert phrase in said


def test_a_spec_runs_again_as_the_same_experiment(sweep, tmp_path):
    folder, _ = sweep
    first = RunDirectory(folder / "method=dpo")
    again = [
        str(TRAIN),
        "--config-path",
        str(first.path),
        "--config-name",
        "spec",
        "tracking.wandb=false",
        f"hydra.run.dir={tmp_path / 'again'}",
    ]
    found = call(*again, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    second = RunDirectory(tmp_path / "again")
    assert second.state()["id"] == first.state()["id"]
    assert [row["loss"] for row in second.metrics()] == [row["loss"] for row in first.metrics()]


MISTAKES = {
    "an empty file": ("rows.jsonl", "", "holds no rows"),
    "a missing file": (None, "", "no such file or folder"),
    "no usable column": ("rows.jsonl", '{"a": 1}\n', "has the columns a"),
    "a row without chosen": (
        "rows.jsonl",
        "".join(
            json.dumps({"prompt": "1", "chosen": None if n == 2 else "2", "rejected": "3"}) + "\n"
            for n in range(5)
        ),
        "line 3: `chosen` is missing",
    ),
    "broken JSON": ("rows.json", '[{"prompt": ', "cannot be read"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_data_is_one_sentence_and_leaves_nothing(tmp_path, mistake, call_main):
    name, content, phrase = MISTAKES[mistake]
    if name:
        Path(name).write_text(content)
    found = call_main(*SHORT, "data=local", f"data.path={name or 'nowhere.jsonl'}")
    assert (found.code, found.output) == (2, "")
    (sentence,) = found.errors
    assert sentence.startswith("error: ") and phrase in sentence
    assert [path.name for path in Path().iterdir()] == ([name] if name else [])


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["model=hub", "model.path=./nowhere"], "no model is there"),
        (["model=hub", "model.path=nobody/nothing"], "the Hub"),
        (["data=hub", "data.path=nobody/nothing"], "the Hub"),
        (["model.chat_template=nowhere"], "zephyr"),
    ],
)
def test_a_missing_model_or_dataset_is_one_sentence_and_leaves_nothing(arguments, phrase, call_main):
    """A closed port stands for the Hub."""
    found = call_main(*SHORT, *arguments)
    assert found.code == 2, found.errors
    assert found.errors[-1].startswith("error: ") and phrase in found.errors[-1], found.errors
    assert not any("Traceback" in line for line in found.errors)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/somewhere/train.py", "python train.py"),
        ("/usr/bin/alignment-lab", "alignment-lab"),
        ("C:/venv/Scripts/alignment-lab.exe", "alignment-lab"),
        ("/somewhere/alignment_lab/entrypoints/worker.py", "python train.py"),  # of this clone
    ],
)
def test_messages_name_the_command_that_was_typed(monkeypatch, program, command):
    monkeypatch.setattr(sys, "argv", [program, "method=dpo"])
    assert typed_command() == command


def test_an_installed_package_names_its_command(monkeypatch, tmp_path):
    """In a process that another one started, where there is no train.py beside the code."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/worker.py"])
    monkeypatch.setattr("alignment_lab.runtime.command_line.CODE_ROOT", tmp_path)
    assert typed_command() == "alignment-lab"


@pytest.mark.parametrize("flag", ["--config-path", "-cp"])
def test_a_relative_config_path_is_one_of_the_working_directory(monkeypatch, tmp_path, flag):
    monkeypatch.chdir(tmp_path)
    words = ["method=dpo", "--config-name", "spec"]
    for given in ([flag, "outputs/run"], [f"{flag}=outputs/run"]):
        absolute = absolute_config_path([*words, *given])
        assert absolute[:3] == words
        assert "=".join(absolute[3:]) == f"{flag}={tmp_path}/outputs/run"
    assert absolute_config_path([flag, "/run"]) == [flag, "/run"]
    assert absolute_config_path([flag, "pkg://mine"]) == [flag, "pkg://mine"]
    assert absolute_config_path([flag]) == [flag]


def test_the_command_is_the_package_too(tmp_path):
    """`python -m alignment_lab.entrypoints.command` is train.py, and answers in the same way."""
    found = [
        call(*program, "method=dpp", cwd=tmp_path)
        for program in ([str(TRAIN)], ["-m", "alignment_lab.entrypoints.command"])
    ]
    assert [ended.returncode for ended in found] == [2, 2]
    assert found[0].stderr == found[1].stderr
    assert found[0].stderr.startswith("error: method=dpp: no such option; did you mean dpo?")


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("recipe=demo --cfg job beta=0.2", "--cfg job"),
        ("model=tiny --multirun method=dpo,ipo ~tracking", "--multirun"),
        ("method=dpo --config-dir a=b -cn=spec +x=1 --help", "--config-dir a=b -cn=spec --help"),
        ("--cfg job", "--cfg job"),
        ("", ""),
    ],
)
def test_overrides_may_stand_anywhere(words, flags):
    """argparse takes them in one place only; a flag's value stays behind its flag."""
    overrides = [word for word in words.split() if word not in flags.split()]
    assert overrides_last(words.split()) == [*flags.split(), *overrides]
