"""A mistake in a YAML file of the user's is one sentence that names the file and says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment_lab.config import GROUPS
from alignment_lab.config.compose import CONF, load_experiment
from alignment_lab.runtime.errors import UserError

GLOBAL = "# @package _global_\n"
EVERY_GROUP = (*GROUPS, "method", "recipe")


def mistake(folder: Path, option: str, *overrides: str) -> str:
    """The sentence about `GROUP=OPTION`, one line."""
    with pytest.raises(UserError) as error:
        load_experiment([option, *overrides], config_dir=folder)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


NO_OPTIONS = [  # suffix, content, what the sentence says
    (".yaml", "", "it is empty; "),
    (".yaml", "# only a comment\n", "it is empty; "),
    (
        ".yaml",
        "a:\n\tb: 1\n",
        "line 2: this is not valid YAML: found character '\\t' that cannot start any token;",
    ),
    (".yaml", "- a\n- b\n", "it holds a list; "),
    (".yaml", "3\n", "it holds one value; "),
    (".yaml", "name: a\nname: b\n", "line 2: this is not valid YAML: found duplicate key name."),
    (".yaml", b"\x00\x01", "this is not valid YAML: "),
    (".yaml", b"name: \xff\n", "it is no text in UTF-8 "),
    (".yaml", "1: 2\n", "its key 1 is not text for YAML; "),
    (".yaml", "on: 2\n", "its key True is not text for YAML; "),
    (".yaml", "a.b: 2\n", "a.b: dots are for the command line; write `a: {b: VALUE}`."),
    (
        ".yaml",
        "defaults: [nothing_there, _self_]\n",
        "its `defaults` name GROUP/nothing_there, and there is no such",
    ),
    (".yaml", "defaults: {a: b}\n", "its `defaults` must be a list, "),
    (".yaml", "defaults: dpo\n", "its `defaults` must be a list, "),
    (".yaml", "defaults:\n", "its `defaults` must be a list, "),
    (".yaml", "defaults: [3]\n", "its `defaults` have 3; "),
    (".yaml", "defaults: [{a: 3}]\n", "its `defaults` have {'a': 3}; "),
    (".yaml", "defaults: [_self_, _self_]\n", "its `defaults` have _self_ twice; "),
    (".yaml", "defaults: [mine]\n", "its `defaults` name this file itself; "),
    (".yaml", "# @package _global_ # mine\n", "its line `# @package` cannot be read; "),
    (".yml", "name: a\n", "Hydra reads files that end in .yaml; rename it."),
    (".json", "{}\n", "Hydra reads files that end in .yaml; rename it."),
]


@pytest.mark.parametrize(("suffix", "content", "sentence"), NO_OPTIONS)
def test_a_file_that_is_no_option_names_itself_in_every_group(suffix, content, sentence, tmp_path):
    index = NO_OPTIONS.index((suffix, content, sentence))
    # a composition takes a tenth of a second
    for group in EVERY_GROUP if index in (0, 20) else ("recipe", EVERY_GROUP[index % 7]):
        file = write(tmp_path, f"{group}/mine{suffix}", content)
        expected = f"{file}: {sentence.replace('GROUP', group)}"
        assert mistake(tmp_path, f"{group}=mine").startswith(expected)


WHAT_IT_SETS = [
    ("recipe", "training: {max_steps: 2}\n", "it lacks `# @package _global_` in its first line"),
    (
        "recipe",
        "# a comment\n# @package _global_\nname: x\n",
        "it lacks `# @package _global_` in its first line",
    ),
    (
        "recipe",
        "# @package global\nname: x\n",
        "its first line says @package global; write `# @package _global_`.",
    ),
    ("recipe", GLOBAL + "model: tiny\n", "model=tiny: a group has keys, "),
    ("recipe", GLOBAL + "training: [a]\n", "training=['a']: a group has keys, "),
    ("recipe", GLOBAL + "training.max_steps: 2\n", "training.max_steps: dots are for the command line; "),
    (
        "recipe",
        GLOBAL + "training: {max_stps: 2}\n",
        "training.max_stps: no such key; did you mean training.max_s",
    ),
    (
        "recipe",
        GLOBAL + "training: {seed: null}\n",
        "training.seed=null: must be a whole number; leave it out for its default, 42.",
    ),
    ("recipe", GLOBAL + "training: {max_steps: -7}\n", "training.max_steps=-7: must be above 0"),
    (
        "recipe",
        GLOBAL + "defaults: [dpo]\n",
        "its `defaults` name recipe/dpo, and there is no such option; another",
    ),
    (
        "recipe",
        GLOBAL + "defaults: [{override /model: nope}]\n",
        "its `defaults` name what is not there: model=nope:",
    ),
    ("recipe", GLOBAL + "defaults: [{override /modle: tiny}]\n", "modle: no such key; did you mean model?"),
    (
        "recipe",
        GLOBAL + "defaults: [/model: tiny]\n",
        "its `defaults` choose model anew; write `override /model: t",
    ),
    (
        "recipe",
        GLOBAL + "defaults: [{override /model: tiny}, {/data: local}]\n",
        "its `defaults` have `override /model: tiny` before others; put it at the end.",
    ),
    ("method", "name: own\nbeta: 0.2\n", "it lacks `defaults: [dpo, _self_]`, or another method there"),
    ("method", "name: dpo\n", "it lacks `defaults: [dpo, _self_]`, or another method there"),
    ("method", GLOBAL + "beta: 0.2\n", "it lacks `defaults: [dpo, _self_]`, or another method there"),
    ("method", "defaults: [dpo, sft, _self_]\n", "its `defaults` build on two methods; keep one."),
    (
        "method",
        "defaults: [/schema/method/dpo@method]\nbeta: 3\n",
        "it lacks `# @package _global_` in its first",
    ),
    (
        "method",
        "defaults: [dpo, _self_]\ntraining: {seed: 1}\n",
        "it lacks `# @package _global_` in its first line, which lets a file set other groups' keys, as it "
        "does with training; write its own then as `method: {KEY: VALUE}`.",
    ),
    ("method", "defaults: [dpo, _self_]\nname: own\n", "method.name=own: it says which method this is"),
    ("model", "model: {path: org/name}\n", "it lacks `# @package _global_` in its first line"),
    ("model", "name: x\n", "model.path=null: give a Hub id or a directory: "),
    ("model", "defaults: [hub, _self_]\n", "model.path=null: give a Hub id or a directory: "),
    ("data", "name: x\n", "data.path=null: name the rows: "),
    ("training", "learning_rate: .inf\n", "training.learning_rate=inf: must be above 0, and finite."),
]


@pytest.mark.parametrize(("group", "content", "sentence"), WHAT_IT_SETS)
def test_what_an_option_lacks_is_said_with_its_file(group, content, sentence, tmp_path):
    file = write(tmp_path, f"{group}/mine.yaml", content)
    said = mistake(tmp_path, f"{group}=mine")
    assert said.startswith(f"{file}: {sentence}")


def test_a_setting_that_was_typed_is_not_the_files(tmp_path, monkeypatch):
    write(tmp_path, "training/mine.yaml", "max_steps: -7\n")
    for typed in ("-7", "-8"):
        monkeypatch.setattr("sys.argv", ["train.py", "training=mine", f"training.max_steps={typed}"])
        sentence = mistake(tmp_path, "training=mine", f"training.max_steps={typed}")
        assert sentence.startswith(f"training.max_steps={typed}: ")


def test_what_is_right_stays_right(tmp_path):
    """Settings alone, without `defaults`; a file that another builds on; one without settings of its own."""
    write(tmp_path, "training/mine.yaml", "max_steps: 3\n")
    write(tmp_path, "method/strong.yaml", "beta: 0.7\n")
    write(tmp_path, "method/own.yaml", "defaults: [dpo, strong, _self_]\nlabel_smoothing: 0.1\n")
    write(tmp_path, "eval/usual.yaml", "defaults: [_self_]\n")
    write(tmp_path, "recipe/mine.yaml", GLOBAL + "defaults:\n  - override /model: tiny\n")
    words = ["training=mine", "method=own", "eval=usual", "recipe=mine"]
    spec = load_experiment(words, config_dir=tmp_path)
    assert (spec.training.max_steps, spec.method.beta, spec.method.label_smoothing) == (3, 0.7, 0.1)
    assert spec.model.name == "tiny"


# ---- the process


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """`call("--cfg job -p nope")`: exit code and what was written to stderr, in an empty directory."""
    from alignment_lab import actions
    from alignment_lab.entrypoints import command

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(actions, "run_action", lambda spec, run: None)

    def run(words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["train.py", *words.split()])
        try:
            command.main()
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


FLAGS = [
    (
        "--multirun --cfg job training.seed=1,2",
        "--multirun, --cfg, --info and --run: only one of them at a time; ",
    ),
    ("--multirun --info", "--multirun, --cfg, --info and --run: only one of them at a time; "),
    ("--resolve", "--resolve: it belongs to --cfg job; "),
    ("--package training", "--package training: it says what --cfg shows; add --cfg job."),
    ("--cfg job -p trainng", "--package trainng: no such key; did you mean training?"),
    ("--cfg job method=dpo,kto", "method=dpo,kto: --cfg shows one experiment; give one value."),
    ("--shell-completion", "--shell-completion: say for which shell, "),
    ("--config-dir nowhere", "--config-dir /"),
    ("hydra.searchpath=[file:///nowhere]", "hydra.searchpath: /nowhere: no such folder."),
    (
        "method=dpo,kto",
        "method=dpo,kto: it has several values; add --multirun for a run with each, or give one.",
    ),
    ("training.seed=range(3)", "training.seed=range(3): it has several values; add --multirun "),
    (
        "tracking.tags=a,b",
        "tracking.tags=a,b: it has several values; add --multirun for a run with each, or give ",
    ),
    ("beta=interval(0,1)", "beta=interval(0,1): it is searched; add --multirun and hydra/sweeper=optuna, "),
    (
        "recipe=sweep/beta",
        "recipe=sweep/beta: it is a sweep over method, beta, training.seed; give --multirun as ",
    ),
    (
        "recipe=sweep/search",
        "recipe=sweep/search: it is a sweep over training.learning_rate, beta; give --multirun",
    ),
    ("hydra/sweeper=optuna", "hydra/sweeper=optuna: give --multirun as well; "),
    ("hydra.sweep.dir=x", "hydra.sweep.dir=x: it is of sweeps, which need --multirun; "),
    ("--multirun hydra.run.dir=x", "hydra.run.dir=x: a sweep lies in hydra.sweep.dir; set that instead."),
    (
        "--multirun hydra/launcher=pool,slurm",
        "hydra/launcher=pool,slurm: what Hydra itself does cannot be swept; ",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), FLAGS)
def test_a_flag_that_hydra_would_ignore_or_trace_is_one_sentence(words, sentence, call, tmp_path):
    code, errors = call(words)
    assert code == 2 and errors.startswith(f"error: {sentence}") and errors.count("\n") == 1
    assert list((tmp_path / "here").iterdir()) == []


def test_files_of_the_folder_that_hydra_is_given(call, tmp_path):
    """One that the lab's own hides, one in a folder too deep, and a configuration without the lab's."""
    hidden = write(tmp_path, "options/method/dpo.yaml", "defaults: [/schema/method/dpo@_here_]\nbeta: 3\n")
    code, errors = call(f"--config-dir {tmp_path}/options")
    assert (code, errors.startswith(f"error: {hidden}: the lab has a method=dpo of its own, which ")) == (
        2,
        True,
    )
    hidden.write_bytes((CONF / "method" / "dpo.yaml").read_bytes())
    assert call(f"--config-dir {tmp_path}/options") == (0, "")
    write(tmp_path, "options/recipe/mine.yaml", GLOBAL + "name: x\n")
    for words in (
        f"--config-dir={tmp_path}/options/recipe recipe=mine",
        f"recipe={tmp_path}/options/recipe/mine.yaml",
    ):
        code, errors = call(words)
        assert code == 2 and "no such option; " in errors and "--config-dir" in errors
    primary = write(tmp_path, "options/alone.yaml", "training: {seed: 1}\n")
    code, errors = call(f"--config-path {tmp_path}/options --config-name alone")
    assert (code, errors.startswith(f"error: {primary}: it lacks `defaults: [config, _self_]`")) == (2, True)
