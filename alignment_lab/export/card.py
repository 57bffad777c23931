"""The model card: what was trained on what, measured how, at which cost, and the command that does it again.

Everything in it is taken from the run's directory. It names no path, no user and no host of this machine.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..report.render.formatting import format_duration, format_gigabytes, format_number
from ..report.study.hardware import describe_hardware
from ..report.study.runs import load_record
from ..runtime.anonymity import anonymize, anonymize_data
from ..runtime.files import read_json
from ..runtime.run_directory import RunDirectory
from .base import EMBEDDED_MODEL_ID, base_name
from .card_metrics import bullets, evaluation_sections, heldout_section, table
from .curves import CURVES, write_curves
from .data_sources import SourceFacts, license_in, source_facts
from .usage import intended_use, limits, usage
from .write import ExportFacts, describe

CARD = "README.md"
LICENSES = {EMBEDDED_MODEL_ID: "apache-2.0"}  # of the embedded weights; another base has it in its own card
DATA_COLUMNS = ("source", "from", "split", "rows trained on", "held out", "licence")
TRAINING_KEYS = ("learning_rate", "num_train_epochs", "max_steps", "global_batch", "seed")


@dataclass(frozen=True)
class Card:
    """What a card is written from, besides the run's directory."""

    run: RunDirectory
    facts: ExportFacts
    location: str  # where the model will be found: a repository, or the name of a folder
    revision: str | None = None  # the branch of the repository
    base_folder: Path | None = None  # of the weights under an adapter, whose own card may lie beside them
    ask_hub: bool = False  # for licences of data sets
    spec: Mapping[str, Any] = field(init=False)
    report: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.run.spec())
        object.__setattr__(self, "report", self.run.report() or {})

    def write(self, folder: Path) -> None:
        """README.md and the picture that it shows: YAML metadata for the Hub, then a page for people."""
        sources = list(source_facts(self.spec, self.report, ask_hub=self.ask_hub))
        curves = write_curves(self.run, folder)
        (folder / CARD).write_text(self._text(sources, curves), encoding="utf-8")

    def _text(self, sources: list[SourceFacts], curves: list[str]) -> str:
        origin, on_hub = base_name(self.spec)
        method, scores = self.spec["method"]["name"], self.facts["scores"]
        name = anonymize(self.spec["name"])
        license_name = _license(self.spec, origin, self.base_folder)
        datasets = [source.hub_id for source in sources if source.hub_id]
        kept_adapter = bool(self.facts["adapter"]) and not self.facts["is_merged"]
        metadata = {
            "library_name": "peft" if kept_adapter else "transformers",
            "pipeline_tag": "text-classification" if scores else "text-generation",
            "tags": ["alignment-lab", method],
            **({"base_model": origin} if on_hub else {}),
            **({"license": license_name} if license_name else {}),
            **({"datasets": datasets} if datasets else {}),
        }
        data = ", ".join(source.described for source in sources)
        parts = [
            f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
            f"# {name}",
            f"{origin}, trained with {method} on {data} by alignment_lab {__version__}.",
            usage(self.facts, self.location, self.revision, origin, on_hub=on_hub),
            f"## Intended use\n\n{intended_use(self.facts, method)}",
            f"## Limits\n\n{bullets(limits(self.facts, self.report, origin))}",
            "## How it was trained",
            table(("", ""), self._training_rows(origin, data)),
            "## Data",
            table(("source", "from", "split", "rows trained on", "held out", "licence"), _data_rows(sources)),
            *heldout_section(self.report),
            *evaluation_sections(self.run, self.facts["step"]),
            *_curves_section(curves),
            "## The weights",
            bullets(describe(self.facts)),
            "## Hardware and cost",
            table(("", ""), self._cost_rows()),
            *self._command_section(),
            *_license_section(self.spec, origin, license_name),
        ]
        return "\n\n".join(parts) + "\n"

    def _training_rows(self, origin: str, data: str) -> Iterator[tuple[str, str]]:
        """Rows of the table: what matters to somebody who compares models."""
        spec, report, facts = self.spec, self.report, self.facts
        parallel, rows = spec.get("parallel") or {}, report.get("rows") or {}
        method_options = {name: value for name, value in spec["method"].items() if name != "name"}
        yield "base model", " ".join(filter(None, [origin, spec["model"].get("revision")]))
        yield "method", _join_settings({"": spec["method"]["name"], **method_options})
        yield "data", data
        yield "training", _join_settings({name: spec["training"].get(name) for name in TRAINING_KEYS})
        if facts["adapter"]:
            on = parallel.get("targets") or "every linear layer"
            adapter = {"": facts["adapter"], "on": on, "over": facts["quantization"]}
            yield "adapter", _join_settings(adapter)
        if report:
            steps, tokens = (format_number(report.get(key)) for key in ("steps", "tokens"))
            train, held_out = (format_number(rows.get(key)) for key in ("train", "eval"))
            what = "blocks of texts" if "texts" in rows else "rows"
            yield "seen", f"{steps} steps, {tokens} tokens; {train} {what} to train on, {held_out} held out"

    def _cost_rows(self) -> Iterator[tuple[str, str]]:
        record, report = load_record(self.run), self.report
        provenance = record.provenance
        yield "hardware", anonymize(describe_hardware(record))
        seconds = report.get("seconds") or {}
        if seconds:
            parts = (f"{phase} {format_duration(seconds[phase])}" for phase in seconds if phase != "total")
            yield "time", f"{format_duration(seconds.get('total'))} ({', '.join(parts)})"
        if report.get("device_hours") is not None:
            yield "device hours", f"{report['device_hours']:g}"
        if report.get("peak_memory_gb") is not None:
            yield "peak memory", f"{format_gigabytes(report['peak_memory_gb'])} GB"
        if report.get("tokens_per_second") is not None:
            yield "speed", f"{report['tokens_per_second']:,.0f} tokens/s while training"
        packages = provenance.get("packages") or {}
        shown = [f"{name} {packages[name]}" for name in ("torch", "transformers", "peft") if name in packages]
        if shown:
            yield "software", ", ".join(shown)

    def _command_section(self) -> Iterator[str]:
        provenance = read_json(self.run.provenance_file) or {}
        places = [self.run.path.absolute(), *filter(None, [provenance.get("directory")])]
        keep = [base_name(self.spec)[0], *_hub_ids(self.spec)]
        yield "## The command"
        if command := provenance.get("command"):
            python, *arguments = command
            git = provenance.get("git") or {}
            dirty = " with changes" if git.get("dirty") else ""
            commit = f", at commit {git['commit']}{dirty}" if git.get("commit") else ""
            words = [Path(python).name, *(anonymize(word, keep=keep, places=places) for word in arguments)]
            yield f"In a checkout of alignment_lab{commit}; `PATH` stands for folders of the machine:"
            yield f"```\n{shlex.join(words)}\n```"
        settings = {key: value for key, value in self.spec.items() if key not in ("defaults", "hydra")}
        spec = yaml.safe_dump(anonymize_data(settings, keep=keep, places=places), sort_keys=False)
        summary = "Every setting of the run (spec.yaml)"
        yield f"<details><summary>{summary}</summary>\n\n```yaml\n{spec}```\n\n</details>"


def _hub_ids(spec: Mapping[str, Any]) -> Iterator[str]:
    """Names of repositories that the settings hold."""
    data = spec["data"]
    for source in (data, *(data.get("sources") or {}).values()):
        if (source.get("kind") or source.get("source")) == "hub" and source.get("path"):
            yield str(source["path"])


def _license(spec: Mapping[str, Any], origin: str, base_folder: Path | None) -> str | None:
    """The license in the base's own card, if that lies beside its weights."""
    if origin in LICENSES:
        return LICENSES[origin]
    folder = base_folder or (Path(spec["model"]["path"]) if spec["model"].get("path") else None)
    return license_in(folder.expanduser() / CARD) if folder else None


def _license_section(spec: Mapping[str, Any], origin: str, license_name: str | None) -> Iterator[str]:
    if spec["model"]["source"] == "random":
        return
    yield "## License"
    if license_name:
        yield f"The base model is licensed under {license_name}. The data have their own, see above."
    else:
        yield f"The license of the base model, {origin}, applies to these weights; see there."


def _data_rows(sources: Iterable[SourceFacts]) -> Iterator[tuple[str, ...]]:
    for source in sources:
        trained = source.counts.get("tokenized", source.counts.get("chosen"))
        counts = (format_number(trained), format_number(source.counts.get("heldout")))
        where = f"[{source.described}](https://huggingface.co/datasets/{source.hub_id})"
        yield (
            source.name,
            where if source.hub_id else source.described,
            source.splits,
            *counts,
            source.license,
        )


def _join_settings(values: Mapping[str, Any]) -> str:
    """`dpo, beta 0.1`: the values that are set, with their names."""
    settings = {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and value != "none"
    }
    return ", ".join(f"{name} {value}".strip().replace("|", "\\|") for name, value in settings.items())


def _curves_section(titles: list[str]) -> Iterator[str]:
    if titles:
        yield "## Curves"
        yield f"![{', '.join(titles)}, by step]({CURVES})"
