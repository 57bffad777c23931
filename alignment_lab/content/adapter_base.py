"""Whether an adapter goes on over the weights that it was trained on: it is a difference to those alone."""

from __future__ import annotations

from pathlib import Path

from ..config import Experiment
from ..models.locate import base_name
from ..runtime.errors import UserError
from ..runtime.files import read_json
from ..runtime.run_directory import RunDirectory
from .files import ADAPTER_CONFIG, MODEL, FileDigests, weight_digests

WEIGHT_SUFFIXES = (".safetensors", ".bin")


def check_adapter_base(spec: Experiment, folder: Path) -> str | None:
    """A sentence where the base of model.init_adapter has another name than the model in `folder`, and it is
    not known whether they are the same weights; None where they are.

    Raises UserError where they are others.
    """
    if not spec.model.init_adapter:
        return None
    adapter = Path(spec.model.init_adapter).expanduser()
    named = str((read_json(adapter / ADAPTER_CONFIG) or {}).get("base_model_name_or_path") or "no base")
    here, _ = base_name(spec.model, folder)
    has_same_name = named in (here, spec.model.path) or Path(named).resolve() == folder.resolve()
    trained_on = _of_its_run(adapter) or ([] if has_same_name else weights_in(Path(named)))
    if not trained_on:
        differs = f"its adapter_config.json names {named} as its base, and this run trains it over {here}"
        unknown = "whether these are the same weights is not known here"
        return None if has_same_name else f"model.init_adapter={adapter}: {differs}; {unknown}"
    if trained_on == weights_in(folder):
        return None
    raise UserError(
        f"model.init_adapter={adapter}: was trained on the weights of {named}, and those of {here} differ; "
        "give those with model.path, or, if it is to go on over another base, copy the adapter and name that "
        "base in its adapter_config.json."
    )


def recorded_weights(run: RunDirectory) -> list[str]:
    """The digests of the weights that a run started from; none where it recorded none."""
    recorded: FileDigests = (read_json(run.provenance_file) or {}).get("files") or {}
    return _digests(recorded.get(MODEL, {}))


def _of_its_run(adapter: Path) -> list[str]:
    """Of an adapter that lies in the directory of its run."""
    run = RunDirectory(adapter.resolve().parent)
    return recorded_weights(run) if run.model == adapter.resolve() else []


def weights_in(folder: Path) -> list[str]:
    """The digests of a model's weights; none where no model is there."""
    return _digests(weight_digests(folder)) if folder.is_dir() else []


def _digests(named: dict[str, str | None]) -> list[str]:
    """Sorted: files may be renamed."""
    return sorted(digest for name, digest in named.items() if digest and name.endswith(WEIGHT_SUFFIXES))
