"""The model card: base model, training, metrics before and after, and the command that reproduces it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..report.render.formatting import format_measured, format_number
from ..report.study.values import n_of_metric, ordered_metrics
from ..runtime.files import read_json
from ..runtime.run_directory import RunDirectory
from .write import ExportFacts, describe

SpecMapping = Mapping[str, Any]  # a spec.yaml
Report = Mapping[str, Any]  # a report.json
EMBEDDED_MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENSES = {EMBEDDED_MODEL_ID: "apache-2.0"}  # of the embedded weights; another base has it in its own card
TRAINING_KEYS = ("learning_rate", "num_train_epochs", "max_steps", "global_batch", "seed")
USAGE = """```python
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("{location}")
tokenizer = AutoTokenizer.from_pretrained("{location}")
```"""


def model_card(run: RunDirectory, facts: ExportFacts, location: str) -> str:
    """README.md: YAML metadata for the Hub, then a page for people.

    `location` is where the model will be found: a folder, or the name of a repository.
    """
    spec, report = run.spec(), run.report() or {}
    origin, method = base_model(spec), spec["method"]["name"]
    license_name = _license(origin, facts["base"])
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if facts["scores"] else "text-generation",
        "tags": ["alignment-lab", method],
        **({"base_model": origin} if _is_on_hub(origin) else {}),
        **({"license": license_name} if license_name else {}),
        **({"datasets": [spec["data"]["path"]]} if spec["data"].get("source") == "hub" else {}),
    }
    auto_class = "AutoModelForSequenceClassification" if facts["scores"] else "AutoModelForCausalLM"
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {spec['name']}",
        f"{origin}, trained with {method} on {_describe_data(spec)} by alignment_lab {__version__}.",
        USAGE.format(auto_class=auto_class, location=location),
        "## How it was trained",
        _table(("", ""), _training_rows(spec, report, facts)),
        "## The weights",
        "\n".join(f"- {line}" for line in describe(facts)),
        *_metrics_section(report),
        *_command_section(run),
        *_license_section(spec, origin, license_name),
    ]
    return "\n\n".join(parts) + "\n"


def base_model(spec: SpecMapping) -> str:
    """The initial weights by their public name."""
    model = spec["model"]
    if model["source"] == "hub":
        return str(model["path"])
    return EMBEDDED_MODEL_ID if model["source"] == "embedded" else f"random weights ({model['name']})"


def _is_on_hub(origin: str) -> bool:
    return origin.count("/") == 1 and origin[0] not in "./~" and not Path(origin).exists()


def _license(origin: str, base: str | None) -> str | None:
    """The license in the base's own card, if that lies beside its weights."""
    card = Path(base or origin, "README.md")
    if origin in LICENSES or not card.is_file():
        return LICENSES.get(origin)
    _, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        metadata = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return None
    return str(metadata["license"]) if isinstance(metadata, dict) and metadata.get("license") else None


def _license_section(spec: SpecMapping, origin: str, license_name: str | None) -> Iterator[str]:
    if spec["model"]["source"] == "random":
        return
    yield "## License"
    if license_name:
        yield f"The base model is licensed under {license_name}."
    else:
        yield f"The license of the base model, {origin}, applies to these weights; see there."


def _describe_data(spec: SpecMapping) -> str:
    data = spec["data"]
    return f"{data['path']} ({data['split']})" if data.get("path") else f"the lab's {data['name']} data"


def _training_rows(spec: SpecMapping, report: Report, facts: ExportFacts) -> Iterator[tuple[str, str]]:
    """Rows of the table: what matters to somebody who compares models."""
    parallel, rows = spec.get("parallel") or {}, report.get("rows") or {}
    method_options = {name: value for name, value in spec["method"].items() if name != "name"}
    yield "base model", " ".join(filter(None, [base_model(spec), spec["model"].get("revision")]))
    yield "method", _join_settings({"": spec["method"]["name"], **method_options})
    yield "data", _describe_data(spec)
    yield "training", _join_settings({name: spec["training"].get(name) for name in TRAINING_KEYS})
    if facts["adapter"]:
        adapter = {
            "": facts["adapter"],
            "on": parallel.get("targets") or "every linear layer",
            "over": facts["quantization"],
        }
        yield "adapter", _join_settings(adapter)
    if report:
        steps, tokens = (format_number(report.get(key)) for key in ("steps", "tokens"))
        train, held_out = (format_number(rows.get(key)) for key in ("train", "eval"))
        what = "blocks of texts" if "texts" in rows else "rows"
        yield "seen", f"{steps} steps, {tokens} tokens; {train} {what} to train on, {held_out} held out"


def _join_settings(values: Mapping[str, Any]) -> str:
    """`dpo, beta 0.1`: the values that are set, with their names."""
    settings = {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and value != "none"
    }
    return ", ".join(f"{name} {value}".strip().replace("|", "\\|") for name, value in settings.items())


def _metrics_section(report: Report) -> Iterator[str]:
    metrics = report.get("metrics") or {}
    if not metrics:
        return
    rows = [
        (
            name,
            format_measured(metrics[name].get("before")),
            format_measured(metrics[name].get("after")),
            format_number(n_of_metric(metrics[name])),
        )
        for name in ordered_metrics(metrics)
    ]
    yield "## Held-out rows, before and after"
    yield _table(("metric", "before", "after", "n"), rows)
    yield (
        "Brackets hold the 95% interval of one number over its n held-out rows; "
        "they do not include what another training seed would change."
    )


def _command_section(run: RunDirectory) -> Iterator[str]:
    provenance = read_json(run.provenance_file)
    if not provenance:
        return
    python, *arguments = provenance["command"]
    git = provenance.get("git") or {}
    commit = f", at commit {git['commit']}{' with changes' if git.get('dirty') else ''}" if git else ""
    yield "## The command"
    yield f"In a checkout of alignment_lab{commit}:"
    yield f"```\n{shlex.join([Path(python).name, *arguments])}\n```"


def _table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
