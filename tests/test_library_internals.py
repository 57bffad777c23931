"""What the lab uses of the inside of libraries is there and behaves as expected; only one module uses it."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from alignment_lab.config.compose import CONF, register_with_hydra
from alignment_lab.runtime import library_internals as internals

PACKAGE = Path(__file__).resolve().parents[1] / "alignment_lab"
OWN_MODULE = PACKAGE / "runtime" / "library_internals.py"
PUBLIC_IN_SPITE_OF_ITS_NAME = {"os._exit"}  # documented


# Hydra


@pytest.fixture(autouse=True)
def unpatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every patch of Hydra is taken back."""
    from hydra._internal import utils
    from hydra._internal.core_plugins import basic_sweeper

    monkeypatch.setattr(utils, "run_and_report", utils.run_and_report)
    monkeypatch.setattr(basic_sweeper, "OmegaConf", basic_sweeper.OmegaConf)
    monkeypatch.setattr(
        Plugins, "is_in_toplevel_plugins_module", staticmethod(Plugins.is_in_toplevel_plugins_module)
    )
    monkeypatch.setattr(
        basic_sweeper.BasicSweeper,
        "validate_batch_is_legal",
        basic_sweeper.BasicSweeper.validate_batch_is_legal,
    )


def as_installed(name: str) -> ModuleType:
    """A copy of a library's module that nothing has patched: other tests of this process may have."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(*overrides: str):
    return OverridesParser.create().parse_overrides(list(overrides))


def test_hydra_reports_errors_through_a_function_of_one_module():
    """hydra.main looks `run_and_report` up when it is called; unpatched, it exits."""
    from hydra._internal import utils

    assert "run_and_report(" in inspect.getsource(utils._run_hydra)
    assert "run_and_report(" in inspect.getsource(utils._run_app)
    with pytest.raises(SystemExit):
        as_installed("hydra._internal.utils").run_and_report(lambda: 1 / 0)
    internals.let_hydra_errors_propagate()
    with pytest.raises(ZeroDivisionError):
        utils.run_and_report(lambda: 1 / 0)
    assert utils.run_and_report(lambda: 3) == 3


def test_the_basic_sweeper_saves_multirun_yaml_with_the_omegaconf_of_its_module():
    from hydra._internal.core_plugins import basic_sweeper

    class Other(OmegaConf):
        pass

    assert "OmegaConf.save(" in inspect.getsource(basic_sweeper.BasicSweeper.sweep)
    internals.save_multirun_config_with(Other)
    assert basic_sweeper.BasicSweeper.sweep.__globals__["OmegaConf"] is Other


def test_hydra_reads_options_through_two_methods_of_a_source(tmp_path):
    """The class in the registry, which is that of the module as it was executed last."""
    from hydra._internal.sources_registry import SourcesRegistry

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: x\n")
    asked, read = [], []

    def load_noted(folder, name, load):
        read.append((folder, name))
        return load()

    internals.read_option_files_with(load_noted, lambda folder, name: asked.append((folder, name)))
    try:
        source = SourcesRegistry.instance().resolve("file")("tests", f"file://{tmp_path}")
        assert source.is_config("model/mine") and not source.is_config("model/other")
        assert source.load_config("model/mine").config == {"name": "x"}
    finally:
        register_with_hydra()
    assert asked == [(tmp_path, "model/mine"), (tmp_path, "model/other")]
    assert read == [(tmp_path, "model/mine")]


def test_hydra_asks_one_function_whether_a_plugin_may_be_made():
    assert "is_in_toplevel_plugins_module(" in inspect.getsource(Plugins)
    assert not Plugins.is_in_toplevel_plugins_module("somewhere.Launcher")
    internals.allow_plugin("somewhere.Launcher")
    assert Plugins.is_in_toplevel_plugins_module("somewhere.Launcher")
    assert not Plugins.is_in_toplevel_plugins_module("elsewhere.Launcher")
    assert Plugins.is_in_toplevel_plugins_module("hydra_plugins.x.Launcher")


def test_the_cells_of_a_grid_are_those_of_hydras_sweeper():
    assert internals.split_sweep(parsed("a=1,2", "b=3")) == [["a=1", "b=3"], ["a=2", "b=3"]]


def test_the_basic_sweeper_validates_through_one_method():
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    unpatched = as_installed("hydra._internal.core_plugins.basic_sweeper")
    assert "self.validate_batch_is_legal(" in inspect.getsource(BasicSweeper.sweep)
    with pytest.raises(AttributeError, match="config_loader"):
        # it has no config loader
        unpatched.BasicSweeper(max_batch_size=None).validate_batch_is_legal([["a=1"]])
    internals.skip_batch_validation()
    BasicSweeper(max_batch_size=None).validate_batch_is_legal([["a=1"]])


def test_overrides_put_in_afterwards_are_those_that_hydra_composes_with():
    register_with_hydra()
    words = ["training.seed=7", "data.max_length=100", "name=x"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        expected = compose("config", words)
        config = compose("config")
        internals.apply_overrides(
            OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words), config
        )
    assert config == expected
    with pytest.raises(Exception, match=r"Could not override 'training.nothing'"):
        internals.apply_overrides(parsed("training.nothing=7"), config)


def test_the_name_of_a_cell_is_hydras():
    assert internals.overrides_dirname(parsed("b=2", "a=1", "c=3"), ["c"], ",", "=") == "a=1,b=2"


def test_a_failed_job_tells_its_error_without_raising_it(capsys):
    error = ValueError("no")
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = error
    assert internals.job_error(returned) is error
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="no"):
        _ = returned.return_value
    assert capsys.readouterr().err != ""  # why the property is not asked


# submitit


def test_submitit_writes_a_script_and_reads_the_number_that_sbatch_prints(tmp_path, monkeypatch):
    from submitit.slurm.slurm import SlurmExecutor

    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    executor = SlurmExecutor(tmp_path)
    executor.update_parameters(job_name="lab", time=5, nodes=2, setup=["export A=1"])
    executor.parameters["map_count"] = 3
    script = internals.submission_script(executor, "python -m x", "mark")
    assert script.startswith("#!/bin/bash")
    for line in (
        "#SBATCH --array=0-2%",
        "#SBATCH --job-name=lab",
        "#SBATCH --nodes=2",
        "export A=1",
        "python -m x",
    ):
        assert line in script, line
    assert internals.submitted_job_id("Submitted batch job 5297\n") == "5297"


# transformers, accelerate


@pytest.fixture(scope="module")
def model():
    """Two random layers of a Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape))


def test_transformers_says_which_attention_a_model_has(model):
    model.set_attn_implementation("eager")
    assert internals.attention_implementation(model) == "eager"
    model.set_attn_implementation("sdpa")
    assert internals.attention_implementation(model) == "sdpa"
    assert internals.supports_sdpa(model)
    assert internals.supports_attention_functions(model)


def test_transformers_says_which_models_have_an_attention_of_their_own():
    """Both are False in the base class, so that a model that says nothing is not taken for one that can."""
    from transformers import PreTrainedModel

    assert PreTrainedModel._supports_sdpa is False
    assert PreTrainedModel._supports_attention_backend is False


def test_the_layers_of_a_model_are_named(model):
    layers = [
        module
        for module in model.modules()
        if type(module).__name__ in internals.decoder_layer_classes(model)
    ]
    assert layers == list(model.model.layers)


def test_transformers_generates_in_step_where_a_model_is_marked_as_sharded(model):
    from transformers.integrations.fsdp import is_fsdp_managed_module

    assert not is_fsdp_managed_module(model)
    internals.mark_as_fsdp_managed(model)
    try:
        assert "_is_fsdp_managed_module" in inspect.getsource(is_fsdp_managed_module)
    finally:
        del model._is_fsdp_managed_module


def test_accelerate_keeps_the_forward_that_it_wraps(model):
    """With mixed precision, `prepare_model` puts a forward and an `_original_forward` on the object."""
    from accelerate import Accelerator

    internals.reset_accelerate()  # a test before this one may have trained in this process
    assert internals.pop_wrapped_forward(model) is None
    plain = model.forward
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    try:
        accelerator.prepare_model(model)
        wrapped = model.__dict__["forward"]
        assert internals.pop_wrapped_forward(model) is wrapped
        assert model.forward == plain
    finally:
        model.__dict__.pop("forward", None)
        model.__dict__.pop("_original_forward", None)
        internals.reset_accelerate()


def test_accelerate_forgets_its_state():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    internals.reset_accelerate()
    Accelerator(mixed_precision="bf16", cpu=True)
    assert AcceleratorState().mixed_precision == "bf16"
    internals.reset_accelerate()
    assert Accelerator(mixed_precision="no", cpu=True).mixed_precision == "no"
    internals.reset_accelerate()


def test_transformers_shows_a_bar_of_gguf_files_through_one_name(capsys):
    from transformers import modeling_gguf_pytorch_utils as module

    internals.quiet_gguf_conversion()
    internals.quiet_gguf_conversion()
    assert "tqdm" in module.load_gguf_checkpoint.__code__.co_names
    assert list(module.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert capsys.readouterr().err == ""


# DeepSpeed, wandb-workspaces


def test_deepspeed_links_optimizer_states_once():
    """The flag and the method of stages 1 and 2: what the method does is tested by runs that resume."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    source = inspect.getsource(DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state)
    assert "if not self._hp_optimizer_states_linked" in source
    calls = []
    optimizer = SimpleNamespace(_lazy_init_hp_params_optimizer_state=lambda: calls.append(optimizer))
    internals.relink_optimizer_states(optimizer)
    assert calls == [optimizer]
    assert optimizer._hp_optimizer_states_linked is False


def test_no_bar_is_drawn_inside_of_the_block_and_bars_come_back(capsys):
    from tqdm import tqdm

    with internals.without_tqdm():
        assert list(tqdm([1, 2], disable=False)) == [1, 2]
    assert capsys.readouterr().err == ""
    assert list(tqdm([1, 2], disable=False)) == [1, 2]
    assert "2/2" in capsys.readouterr().err


def test_ifbench_is_imported_without_spacy_and_asks_for_data_once(monkeypatch):
    """The import and the checkers call the two functions that are replaced; both libraries are as before."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("ifbench")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ifbench", "spacy")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(nltk.data, "path", [])
    asked = []

    def download(name: str, **options: object) -> bool:
        asked.append(name)
        return False

    monkeypatch.setattr(nltk, "download", download)
    with internals.ifbench_checkers() as checkers:
        for _ in range(2):  # a checker asks when it is made
            question = checkers.InputExample("1", ["ratio:sentence_type"], "Two to one.", [{}])
            answers = {"Two to one.": "One. Two. Three?"}
            assert checkers.test_instruction_following_strict(question, answers).follow_all_instructions
    assert asked == ["punkt", "punkt_tab"]
    assert nltk.download is download and "spacy" not in sys.modules


def test_a_workspace_can_be_looked_at_before_it_is_sent():
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    text = internals.workspace_as_json(workspaces.Workspace(entity="me", project="lab", name="a name"))
    assert '"a name"' in text


# Nothing else


def private_uses(source: str) -> Iterator[str]:
    """Private attributes of anything but `self` and `cls`, and imports of what is private elsewhere."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node.value):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (alias.name for alias in node.names if is_private(alias.name))
            yield from [node.module] if any(map(is_private, (node.module or "").split("."))) else []
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if any(map(is_private, alias.name.split("."))))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            is_lookup = node.func.id in ("getattr", "setattr", "hasattr", "delattr") and len(node.args) > 1
            name = node.args[1].value if is_lookup and isinstance(node.args[1], ast.Constant) else None
            if isinstance(name, str) and is_private(name) and not is_own(node.args[0]):
                yield ast.unparse(node)


def is_private(name: str) -> bool:
    is_special = (name.startswith("__") and name.endswith("__")) or name == "_replace"  # of a named tuple
    return name.startswith("_") and not is_special


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_no_other_module_touches_what_is_private(file):
    if file != OWN_MODULE:
        assert set(private_uses(file.read_text())) - PUBLIC_IN_SPITE_OF_ITS_NAME == set()


SEEN = [
    "model._no_split_modules",
    "super()._train()",
    "self.model._config",
    "from hydra._internal import utils",
    "import hydra._internal.utils",
    "from hydra.core import _private",
    "getattr(model, '_supports_sdpa', False)",
    "def f():\n    model._x = 3",
]
NOT_SEEN = [
    "self._own",
    "cls._own",
    "__name__.__class__",
    "from ._own import name",
    "getattr(self, '_own')",
    "_own",
]


@pytest.mark.parametrize("source", [*SEEN, *NOT_SEEN])
def test_the_test_sees_what_it_forbids(source):
    assert bool(list(private_uses(source))) is (source in SEEN)
