"""A method of the user's own is composed, checked, identified and trained like one of the lab's."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_plugins import OPTION, PLUGIN, SHORT, write_plugin

from alignment_lab.config import Experiment, compose, from_yaml, plugins, to_plain, to_yaml
from alignment_lab.config.identity import describe_difference
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.sweep import snapshot
from alignment_lab.sweep.grid import compose_grid

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with the plugin and its option."""
    write_plugin(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def composed_here(composed, folder):
    """`composed_here("method.tilt=1")`: method=tilted with the option file of this folder."""

    def make(*overrides: str) -> Experiment:
        return composed(["hydra.searchpath=[file://options]", "method=tilted", *overrides])

    return make


@pytest.fixture
def mistake(composed_here, monkeypatch, capsys):
    """`mistake("method.tilt=-1")`: the sentence that the user reads, with exit code 2."""

    def sentence(*overrides: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", "method=tilted", *overrides])
        with pytest.raises(SystemExit) as exit, compose.errors_as_sentences():
            composed_here(*overrides)
        assert exit.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
        return message.removeprefix("error: ").rstrip("\n")

    return sentence


def train(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """`python train.py --config-dir options ...` in this folder."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, str(TRAIN), "--config-dir", "options", *words],
        cwd=folder,
        env=inherited,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunDirectory(run).metrics() if "loss" in row]


# Composing


def test_a_method_of_ones_own_is_composed_with_its_schema(composed_here, folder):
    spec = composed_here("method.tilt=0.5")
    assert (type(spec.method).__name__, spec.method.beta, spec.method.tilt) == ("Tilted", 0.1, 0.5)
    assert spec.plugin == str(folder / "tilted.py")
    assert spec.plugin_sha256 == hashlib.sha256(PLUGIN.encode()).hexdigest()
    assert composed_here("beta=0.3").method.beta == 0.3


def test_a_grid_takes_it_beside_methods_of_the_lab(composed_here, monkeypatch):
    """The lab's own method is the same experiment with a plugin and without."""
    from hydra import initialize_config_dir

    plain = composed_here("method=dpo")
    assert plain.plugin is None and plain.plugin_sha256 is None
    compose.register_with_hydra()
    path = ["hydra.searchpath=[file://options]", "plugin=tilted.py"]
    with initialize_config_dir(str(compose.CONF), version_base="1.3"):
        grid = [
            [*path, f"method={name}", f"training.seed={seed}"]
            for name in ("dpo", "tilted")
            for seed in (1, 2)
        ]
        specs = compose_grid(grid, "config")
    assert [(spec.method.name, spec.training.seed) for spec in specs] == [
        ("dpo", 1),
        ("dpo", 2),
        ("tilted", 1),
        ("tilted", 2),
    ]
    assert [spec.plugin is None for spec in specs] == [True, True, False, False]


def test_a_module_can_be_named_instead_of_a_file(composed_here, folder, monkeypatch):
    """Its relative imports are those of its package."""
    package = folder / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "numbers_of_mine.py").write_text("TILT = 3.0\n")
    source = PLUGIN.replace("if TYPE_CHECKING", "from .numbers_of_mine import TILT\n\nif TYPE_CHECKING")
    source = source.replace("tilt: float = 0.0", "tilt: float = TILT")
    (package / "losses.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    spec = composed_here("plugin=mine.losses")
    assert (spec.plugin, spec.method.tilt) == ("mine.losses", 3.0)


def test_the_spec_is_read_again_as_the_same_experiment(composed_here):
    spec = composed_here("method.tilt=0.5")
    again = from_yaml(to_yaml(spec))
    assert again == spec
    assert again.run_id == spec.run_id


def test_the_source_is_part_of_the_identity_and_its_place_is_not(composed_here, folder):
    spec = composed_here()
    other = folder / "elsewhere.py"
    other.write_text(PLUGIN)
    assert composed_here("plugin=elsewhere.py").run_id == spec.run_id
    write_plugin(folder, PLUGIN + "\n# changed\n")
    changed = composed_here()
    assert changed.run_id != spec.run_id
    message = describe_difference(to_plain(spec), to_plain(changed))
    assert message.startswith(
        f"plugin_sha256 (of plugin={folder / 'tilted.py'}) is {spec.plugin_sha256[:12]}"
    )


def test_a_spec_refuses_another_source(composed_here, folder):
    text = to_yaml(composed_here())
    write_plugin(folder, PLUGIN + "\n# changed\n")
    with pytest.raises(UserError, match=r"tilted\.py: its source has changed.*plugin_sha256=null"):
        from_yaml(text)


def test_two_versions_in_one_process_do_not_meet(composed_here, folder):
    """As in a notebook whose user edits the file."""
    before = composed_here()
    write_plugin(folder, PLUGIN.replace("tilt: float = 0.0", "tilt: float = 1.0"))
    after = composed_here()
    assert (before.method.tilt, after.method.tilt) == (0.0, 1.0)
    assert type(before.method) is not type(after.method)


def test_a_snapshot_of_the_code_holds_the_source(composed_here, folder, monkeypatch):
    """Whoever runs the snapshot's code loads it, whatever has become of the file."""
    spec = composed_here()
    code = snapshot.snapshot_folder(folder, snapshot.snapshot_code(folder))
    assert (code / "plugins" / f"{spec.plugin_sha256}.py").read_text() == PLUGIN
    (folder / "tilted.py").write_text("raise ValueError")
    monkeypatch.setattr(plugins, "CODE_ROOT", code)
    monkeypatch.setattr(plugins, "_loaded", {})
    assert from_yaml(to_yaml(spec)).run_id == spec.run_id


# Mistakes


NO_MODULE = "no module of that name can be imported; give the path of its file, as in plugin=tilted.py."
WRONG_SETTINGS = {
    "method.tlit=1": "no such key; did you mean method.tilt?",
    "method.beta=abc": "give a number.",
    "method.beta=null": "must be a number; leave it out for its default, 0.1.",
    "method.gamma=1": "method=tilted has no such setting; leave it out.",
    "plugin=options": "is a directory; give the path of a Python file.",
    "plugin=tlted": NO_MODULE,
    "plugin=numpy.nowhere": NO_MODULE,
    "plugin=json": "is no Python file; name the module in it that has METHODS.",
}
NOT_THERE = "cannot be read (No such file or directory, looked from {}); give the path of a Python file."
OUT_OF_RANGE = {
    "method.tilt=-1": "method.tilt=-1.0: must be 0 or more.",
    "beta=0": "method.beta=0.0: must be above 0: at 0 nothing holds the policy to its reference.",
    "plugin=null": (
        "method.name=tilted: no loaded module defines this method; give plugin=FILE.py, whose METHODS has it."
    ),
}


@pytest.mark.parametrize("override", [*WRONG_SETTINGS, *OUT_OF_RANGE])
def test_a_wrong_setting_is_one_sentence(mistake, override):
    expected = OUT_OF_RANGE.get(override) or f"{override}: {WRONG_SETTINGS[override]}"
    assert mistake(override) == expected


def test_a_file_that_is_not_there_is_one_sentence_that_says_where_it_was_sought(mistake, folder):
    assert mistake("plugin=tlted.py") == f"plugin=tlted.py: {NOT_THERE.format(Path.cwd())}"


TABLE = 'METHODS = {"tilted": MethodPlugin(schema=Tilted, loss=tilted)}'
NO_TABLE = "has no dict METHODS; write METHODS = {NAME: MethodPlugin(schema=..., loss=...)}."
ENTRY = "METHODS['tilted']: "
SIGNATURE = f"{ENTRY}its loss must take (policy, reference, *, SETTINGS), and"
WRONG_MODULES = {
    "import nothing_of_that_name\n": "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'.",
    "x = (\n": "line 1: SyntaxError: '(' was never closed.",
    "import sys\nsys.exit(3)\n": "line 2: SystemExit: 3.",
    "METHOD = {}\n": NO_TABLE,
    "METHODS = []\n": NO_TABLE,
}
WRONG_TABLES = {
    'METHODS = {"tilted": tilted}': (
        f"{ENTRY}its type is function; give a MethodPlugin(schema=..., loss=...)."
    ),
    "METHODS = {}": "its METHODS is empty; write METHODS = {NAME: MethodPlugin(schema=..., loss=...)}.",
    'METHODS = {"dpo": MethodPlugin(schema=Tilted, loss=tilted)}': (
        "METHODS['dpo']: the lab has a method of that name; choose another one."
    ),
    'METHODS = {"other": MethodPlugin(schema=Tilted, loss=tilted)}': (
        'METHODS[\'other\']: Tilted.name is "tilted"; give it the default "other".'
    ),
    'METHODS = {"tilted": MethodPlugin(schema=dict, loss=tilted)}': (
        f"{ENTRY}its schema must be a dataclass derived from alignment_lab.config.Referenced or Pairwise."
    ),
    'METHODS = {"tilted": MethodPlugin(schema=Tilted, loss=3)}': f"{SIGNATURE} its type is int.",
}
WRONG_PARTS = {  # what is replaced in the plugin, by what
    ("tilt: float = 0.0", "tilt: float = -1.0"): (
        f"{ENTRY}the defaults of Tilted are no valid settings: method.tilt=-1.0: must be 0 or more."
    ),
    ("@dataclass\nclass Tilted", "class Tilted"): f"{ENTRY}Tilted is not decorated with @dataclass.",
    ("reference: PairLogprobs, *", "*"): f"{SIGNATURE} takes (policy, *, beta, tilt).",
    ("*, beta", "beta"): f"{SIGNATURE} takes (policy, reference, beta, tilt).",
    ("tilt: float)", "**tilt)"): f"{SIGNATURE} takes (policy, reference, *, beta, **tilt).",
    ("tilt: float)", "tlit: float)"): f"{ENTRY}its loss takes tlit, which is no field of Tilted.",
}
WRONG = (
    WRONG_MODULES
    | {PLUGIN.replace(TABLE, table): sentence for table, sentence in WRONG_TABLES.items()}
    | {PLUGIN.replace(*part): sentence for part, sentence in WRONG_PARTS.items()}
)


@pytest.mark.parametrize(("source", "sentence"), WRONG.items(), ids=range(len(WRONG)))
def test_a_wrong_module_is_one_sentence(mistake, folder, source, sentence):
    write_plugin(folder, source)
    assert mistake() == f"plugin=tilted.py: {sentence}"


def test_an_option_without_a_schema_says_what_is_missing(mistake, folder):
    option = folder / "options" / "method" / "tilted.yaml"
    option.write_text(OPTION.replace("defaults: [/schema/method/plugin@method, _self_]\n", ""))
    sentence = mistake()
    assert sentence.startswith("options/method/tilted.yaml: ")
    assert "[/schema/method/plugin@method, _self_]" in sentence


def test_mistakes_are_answered_without_torch(run_command, tmp_path):
    """`run_command` runs in tmp_path/here."""
    write_plugin(tmp_path / "here")
    ended = run_command("--config-dir", "options", "method=tilted", "method.tilt=-1")
    assert (ended.code, ended.errors) == (2, ["error: method.tilt=-1.0: must be 0 or more."])
    assert not {"torch", "transformers"} & ended.imported
    assert [path.name for path in (tmp_path / "here").iterdir() if path.name == "outputs"] == []


# The loss


def test_the_loss_is_the_users_function(composed_here):
    """At tilt=0 it is DPO's, bit for bit; what it returns is checked."""
    import inspect

    import torch

    from alignment_lab.losses import PairLogprobs
    from alignment_lab.losses.pairwise import dpo

    spec = composed_here()
    loss = plugins.plugin_loss(spec.method)
    assert loss is not None
    assert list(inspect.signature(loss).parameters) == ["policy", "reference", "beta", "tilt"]
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 4, 5])
    policy, reference = (
        PairLogprobs(*(-5 * torch.rand(3, generator=generator) for _ in range(2)), lengths, lengths)
        for _ in range(2)
    )
    mine, theirs = (
        loss(policy, reference, beta=0.1, tilt=0.0),
        dpo(policy, reference, beta=0.1, label_smoothing=0.0),
    )
    for part in ("losses", "chosen_rewards", "rejected_rewards"):
        assert torch.equal(getattr(mine, part), getattr(theirs, part))
    assert not torch.equal(loss(policy, reference, beta=0.1, tilt=1.0).losses, theirs.losses)


def test_the_lab_s_own_methods_have_no_plugin(composed):
    assert plugins.plugin_loss(composed(["method=dpo"]).method) is None


@pytest.mark.parametrize("wrong", ["losses.mean()", "losses[:1]"])
def test_a_loss_that_is_no_number_for_each_pair_is_refused(composed_here, folder, wrong):
    import torch

    from alignment_lab.losses import PairLogprobs

    write_plugin(folder, PLUGIN.replace("PairLoss(losses,", f"PairLoss({wrong},"))
    pairs = PairLogprobs(torch.zeros(3), torch.zeros(3), torch.ones(3), torch.ones(3))
    loss = plugins.plugin_loss(composed_here().method)
    assert loss is not None
    with pytest.raises(UserError, match="the loss of tilted must return PairLoss"):
        loss(pairs, pairs, beta=0.1, tilt=0.0)


# Runs


def test_a_run_has_the_losses_of_dpo_and_refuses_another_source(folder):
    """tilt=0 is DPO, bit for bit. The changed source is named, and the run directory stays as it was."""
    for name, method in (("mine", ["method=tilted"]), ("theirs", ["method=dpo"])):
        ended = train(folder, *method, *SHORT, f"hydra.run.dir={name}")
        assert ended.returncode == 0, ended.stderr
    assert losses(folder / "mine") == losses(folder / "theirs")
    write_plugin(folder, PLUGIN + "\n# changed\n")
    ended = train(folder, "method=tilted", *SHORT, "training.max_steps=3", "hydra.run.dir=mine")
    assert ended.returncode == 2
    assert f"plugin_sha256 (of plugin={folder / 'tilted.py'}) is " in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert RunDirectory(folder / "mine").state()["state"] == "finished"
    ended = train(folder, "--config-path", "mine", "--config-name", "spec", "hydra.run.dir=again")
    assert ended.returncode == 2
    assert "its source has changed" in ended.stderr


@pytest.mark.slow
def test_two_processes_train_with_it(folder):
    """Same rows and steps as one process: the same losses up to rounding."""
    two = ["parallel=ddp", "parallel.processes=2", "parallel.device=cpu"]
    for name, more in (("one", []), ("two", two)):
        ended = train(folder, "method=tilted", "method.tilt=0.5", *SHORT, *more, f"hydra.run.dir={name}")
        assert ended.returncode == 0, ended.stderr
    assert losses(folder / "two") == pytest.approx(losses(folder / "one"), rel=1e-4)


@pytest.mark.slow
def test_a_pool_trains_with_it_and_an_edited_file_changes_no_cell(folder):
    """The cells run the snapshot's copy; the sweep's next command has another source, and is refused."""
    sweep = [
        "--multirun",
        "method=tilted",
        "method.tilt=0,0.5",
        *SHORT,
        "hydra/launcher=pool",
        "hydra.sweep.dir=sweep",
    ]
    ended = train(folder, *sweep)
    assert ended.returncode == 0, ended.stderr
    first, second = sorted(path for path in (folder / "sweep").glob("method.tilt=*"))
    assert losses(first) != losses(second)
    (code,) = (folder / "sweep" / ".code").iterdir()
    assert len(list((code / "plugins").iterdir())) == 1
    manifest = json.loads((folder / "sweep" / "sweep.json").read_text())
    assert len(manifest["cells"]) == 2
    write_plugin(folder, PLUGIN + "\n# changed\n")
    again = [str(first), "-c", "pass"]
    cell = subprocess.run(
        [sys.executable, "-m", "alignment_lab.entrypoints.sweep_cell", again[0]],
        env={**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert cell.returncode == 0, cell.stderr
    assert "this experiment is finished" in cell.stdout
    ended = train(folder, *sweep)
    assert ended.returncode == 2
    assert "plugin_sha256 (of plugin=" in ended.stderr
