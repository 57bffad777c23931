"""What `eval.models` names: runs, checkpoints, adapters, folders, Hub ids. Found without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints import manifest
from ..config import (
    Adapter,
    Experiment,
    Model,
    ModelSource,
    Parallel,
    Quantization,
    SpecError,
    from_yaml,
    to_plain,
)
from ..content import recorded_weights, weights_in
from ..content.files import ADAPTER_CONFIG, CONFIG
from ..models.embedded import embedded_weights
from ..models.locate import locate_model
from ..runtime.digests import digest_files
from ..runtime.errors import UserError
from ..runtime.files import read_json
from ..runtime.folders import holds_run
from ..runtime.run_directory import EVALUATION, RunDirectory

Kind = Enum("Kind", ["run", "checkpoint", "initial", "adapter", "folder", "hub", "composed"])
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
TOKENIZER_CONFIG = "tokenizer_config.json"
EMBEDDED = "embedded"  # the model that comes with the lab, where no folder has this name
ONE_SCORE = "ForSequenceClassification"  # how the architecture of a reward model ends


@dataclass(frozen=True)
class Candidate:
    """One model to measure, as far as it is known before it is loaded."""

    name: str  # as it was typed
    kind: Kind
    spec: Experiment  # how it is loaded (model, parallel), and the method that it was trained with
    base: Path  # the folder of its weights, or of those under its adapter
    folder: Path  # where what distinguishes it lies: its weights, or its adapter
    run: RunDirectory | None = None  # that it comes from
    step: int | None = None  # of the run, where it is a checkpoint
    start: Candidate | None = None  # the initial policy of its run

    @property
    def is_initial(self) -> bool:
        """Whether it is the initial policy of its run."""
        return self.kind is Kind.initial

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter over other weights."""
        return (self.folder / ADAPTER_CONFIG).is_file()

    @property
    def starts_with_base(self) -> bool:
        """Whether its reference is the base, computed by switching its adapter off."""
        trained_before = self.start is not None and self.start.is_adapter
        return self.is_adapter and not self.is_initial and not trained_before

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores answers, and writes none."""
        if self.run is not None:
            return not self.spec.method.generates
        if self.is_adapter:
            return (read_json(self.folder / ADAPTER_CONFIG) or {}).get("task_type") == "SEQ_CLS"
        named = (read_json(self.folder / CONFIG) or {}) if (self.folder / CONFIG).is_file() else {}
        return any(name.endswith(ONE_SCORE) for name in named.get("architectures") or ())

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the tokenizer that it was trained with, and the chat template."""
        return self.folder if (self.folder / TOKENIZER_CONFIG).is_file() else self.base

    def content(self) -> dict[str, Any]:
        """What it is made of, by content: the digests of its weights, its adapter and its tokenizer."""
        files = [file for file in sorted(self.folder.glob("*")) if _counts(file)] if self.is_adapter else []
        tokenizer = sorted(self.tokenizer_folder.glob("tokenizer*.json")) + sorted(
            self.tokenizer_folder.glob("*.jinja")
        )
        return {
            "weights": weights_in(self.base),
            "adapter": digest_files(files),
            "tokenizer": digest_files(tokenizer),
        }


def _counts(file: Path) -> bool:
    return file.name == ADAPTER_CONFIG or file.name.startswith("adapter_model.")


def find_candidates(spec: Experiment) -> tuple[list[Candidate], list[str]]:
    """The models of eval.models, folders of runs and of checkpoints as their members; and lines to tell.

    Raises UserError for the first that cannot be evaluated.
    """
    if not spec.eval.models:
        folder = locate_model(spec.model)
        plain = with_model(spec, spec.model.name, folder)
        return [Candidate(spec.model.name, Kind.composed, plain, folder, folder)], []
    found: list[Candidate] = []
    lines: list[str] = []
    for name in spec.eval.models:
        members, told = _members(name)
        lines += told
        found += [find_candidate(spec, member) for member in members]
    if spec.eval.before:
        found = [with_start for each in found for with_start in (each.start, each) if with_start]
    unique: dict[Path, Candidate] = {}
    for each in found:
        unique.setdefault(each.folder.resolve(), each)
    return list(unique.values()), lines


def _members(name: str) -> tuple[list[str], list[str]]:
    """The models that a name stands for: itself, or the finished runs, or the checkpoints, in that folder; of
    a pattern those of every folder that it fits.
    """
    folder = Path(name).expanduser()
    if any(character in name for character in "*?[") and not folder.exists():
        fitting = [_members(each) for each in sorted(glob(str(folder)))]
        if not fitting:
            raise UserError(f"eval.models={name}: no folder fits this pattern; correct it.")
        return [each for names, _ in fitting for each in names], [
            line for _, told in fitting for line in told
        ]
    if not folder.is_dir() or holds_run(folder) or _is_model(folder):
        return [name], []
    if folder.name == "checkpoints" and holds_run(folder.parent):
        steps = manifest.list_checkpoints(folder)
        if not steps:
            raise UserError(
                f"eval.models={name}: this run keeps no checkpoint (training.save_steps); name the run."
            )
        return [str(step) for step in steps], []
    runs = [RunDirectory(each.parent) for each in sorted(folder.glob("*/run.json")) if holds_run(each.parent)]
    runs = [run for run in runs if run.state().get("kind") != EVALUATION]
    finished = [str(run.path) for run in runs if run.state().get("state") == "finished"]
    told = f"{name}: {len(finished)} of {len(runs)} runs there are finished, and are evaluated"
    return finished or [name], [told] if finished else []


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / ADAPTER_CONFIG).is_file()


def find_candidate(spec: Experiment, name: str, key: str = "eval.models") -> Candidate:
    """The model behind a name; `key` is the setting that a mistake is said of. Raises UserError."""
    folder = Path(name).expanduser()
    if not folder.is_dir() and name == EMBEDDED:
        folder = embedded_weights()
        return Candidate(name, Kind.folder, with_model(spec, name, folder), folder, folder)
    if not folder.is_dir():
        return _on_hub(spec, name, key)
    if holds_run(folder):
        return _of_run(spec, name, RunDirectory(folder), key)
    resolved = folder.resolve()
    if holds_run(resolved.parent) and resolved.name == "model":
        return _of_run(spec, name, RunDirectory(folder.parent), key)
    if resolved.parent.name == "checkpoints" and holds_run(resolved.parent.parent) and _is_model(folder):
        return _of_checkpoint(spec, name, folder, key)
    if (folder / ADAPTER_CONFIG).is_file():
        return _of_adapter(spec, name, folder, key)
    if (folder / CONFIG).is_file():
        return Candidate(name, Kind.folder, with_model(spec, name, folder), folder, folder)
    runs = [each.parent for each in folder.glob("*/run.json") if holds_run(each.parent)]
    nothing = "no model is there (a run, a checkpoint, a directory with config.json or adapter_config.json)"
    finished = sorted(str(run) for run in runs if RunDirectory(run).state().get("state") == "finished")
    if finished:
        raise UserError(f"{key}={name}: holds {len(runs)} runs; name one of them, such as {finished[0]}.")
    what = f"none of its {len(runs)} runs is finished" if runs else nothing
    raise UserError(f"{key}={name}: {what}; give another one.")


def _on_hub(spec: Experiment, name: str, key: str) -> Candidate:
    is_path = name[:1] in (".", "/", "~") or not HUB_ID.fullmatch(name) or name.startswith("outputs/")
    if is_path:
        raise UserError(f"{key}={name}: no such directory; give a run, a checkpoint, a model or a Hub id.")
    settings = replace(
        spec.model, name=name, source=ModelSource.hub, path=name, init_adapter=None, shape=None
    )
    try:
        folder = locate_model(settings)
    except UserError as error:
        raise UserError(str(error).replace("model.path=", f"{key}=", 1)) from None
    if not _is_model(folder):
        raise UserError(f"{key}={name}: this repository holds no model (no config.json); give another one.")
    if (folder / ADAPTER_CONFIG).is_file():
        return replace(_of_adapter(spec, name, folder, key), kind=Kind.hub)
    return Candidate(name, Kind.hub, replace(spec, model=settings), folder, folder)


def with_model(spec: Experiment, name: str, folder: Path, **parallel: Any) -> Experiment:
    """The experiment with the model in `folder`, as its files have it, in one process."""
    model = Model(
        name=name,
        source=ModelSource.hub,
        path=str(folder),
        dtype=spec.model.dtype,
        attention=spec.model.attention,
        trust_remote_code=spec.model.trust_remote_code,
        chat_template=spec.model.chat_template,
    )
    one_process = {"adapter": Adapter.none, "quantization": Quantization.none, **parallel}
    return replace(spec, model=model, parallel=Parallel(device=spec.parallel.device, **one_process))


def _of_run(spec: Experiment, name: str, run: RunDirectory, key: str) -> Candidate:
    state = run.state()
    if state.get("kind") == EVALUATION:
        raise UserError(f"{key}={name}: this is an evaluation, and no model; give the run that it evaluated.")
    if state.get("state") != "finished" or not run.model.is_dir():
        steps = manifest.list_checkpoints(run.checkpoints)
        remedy = f"evaluate its checkpoint {steps[-1]}" if steps else "let it finish with the same command"
        raise UserError(f"{key}={name}: this run is not finished, but {state.get('state')}; {remedy}.")
    return _trained(spec, Candidate(name, Kind.run, spec, run.model, run.model, run), key)


def _of_checkpoint(spec: Experiment, name: str, folder: Path, key: str) -> Candidate:
    run = RunDirectory(folder.parent.parent)
    if damage := manifest.find_damage(folder, str(run.state().get("id"))):
        raise UserError(f"{key}={name}: this checkpoint is not whole: {damage}; give another one.")
    step = manifest.step_of(folder)
    return _trained(spec, Candidate(name, Kind.checkpoint, spec, folder, folder, run, step), key)


def _trained(spec: Experiment, found: Candidate, key: str) -> Candidate:
    """What a run trained, with the method and the initial policy that its spec.yaml names."""
    assert found.run is not None
    trained = run_spec(found.run, device_of=spec)
    start = _initial_policy(trained, found)
    if not found.is_adapter:
        plain = with_model(
            replace(trained, model=replace(trained.model, chat_template=None)), found.name, found.folder
        )
        return replace(found, spec=plain, start=start)
    assert start is not None
    recorded, here = recorded_weights(found.run), weights_in(start.base)
    if recorded and recorded != here:
        raise UserError(
            f"{key}={found.name}: the weights in {start.base} are not those that its adapter was trained on "
            "(provenance.json); put those back."
        )
    over = replace(start.spec, model=replace(start.spec.model, init_adapter=str(found.folder)))
    return replace(found, spec=over, base=start.base, start=start)


def run_spec(run: RunDirectory, device_of: Experiment) -> Experiment:
    """The experiment of a run, in one process on the device of another; raises UserError where its files are
    gone.

    Relative paths of it are those of the directory where it was started, where nothing has that name here.
    """
    settings = yaml.safe_load(run.spec_file.read_text())
    started_in = Path((read_json(run.provenance_file) or {}).get("directory") or ".")
    for group, key in (("model", "path"), ("model", "init_adapter"), ("data", "path"), ("data", "eval_path")):
        value = (settings.get(group) or {}).get(key)
        if value and not Path(value).expanduser().exists() and (started_in / value).exists():
            settings[group][key] = str(started_in / value)
    old = settings["parallel"]
    kept = {
        name: old[name] for name in ("adapter", "rank", "alpha", "targets", "quantization") if name in old
    }
    settings["parallel"] = {**kept, "device": device_of.parallel.device.name}
    settings.pop("hydra", None)
    try:
        return from_yaml(yaml.safe_dump(settings))
    except SpecError as error:
        raise UserError(f"{run.path}: what its spec.yaml names is not there any more: {error}") from None


def _initial_policy(trained: Experiment, found: Candidate) -> Candidate | None:
    """The model that a run started from; None where it is not on this machine."""
    try:
        base = locate_model(trained.model)
    except UserError:
        if found.is_adapter:
            raise
        return None
    folder = Path(trained.model.init_adapter).expanduser() if trained.model.init_adapter else base
    name = f"{found.run.path if found.run else found.name}, before training"
    return Candidate(name, Kind.initial, trained, base, folder, found.run)


def _of_adapter(spec: Experiment, name: str, folder: Path, key: str) -> Candidate:
    """An adapter by itself, over the base that its adapter_config.json names."""
    named = read_json(folder / ADAPTER_CONFIG) or {}
    base = str(named.get("base_model_name_or_path") or "")
    if not base:
        raise UserError(
            f"{key}={name}: its adapter_config.json names no base; merge it, and give that model."
        )
    settings = replace(
        spec.model, name=name, source=ModelSource.hub, path=base, revision=named.get("revision"),
        init_adapter=str(folder), shape=None,
    )  # fmt: skip
    try:
        located = locate_model(settings)
    except UserError:
        raise UserError(
            f"{key}={name}: its base {base} is neither a directory here nor on the Hub; put it there, or "
            "name its base in adapter_config.json."
        ) from None
    parallel = Parallel(device=spec.parallel.device, adapter=Adapter.lora)
    return Candidate(name, Kind.adapter, replace(spec, model=settings, parallel=parallel), located, folder)


def own_rows(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first of the models that is of a run, whose data is there to measure on."""
    return next((each for each in candidates if each.run is not None), None)


def identity_of(candidates: Sequence[Candidate]) -> Iterator[dict[str, Any]]:
    """What each of the models is, for the identity of an evaluation: its content, and its reference's."""
    for each in candidates:
        start = each.start.content() if each.start else None
        yield {**each.content(), "start": start, "method": to_plain(each.spec)["method"]}
