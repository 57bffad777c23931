"""The model card: what it was made from and how, what was measured before and after, and the command that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from .. import __version__
from ..report.render.formatting import format_measured, format_number
from ..report.study.values import n_of_metric, ordered_metrics
from ..runtime.files import read_json
from ..runtime.run_directory import RunDirectory
from .write import in_words

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCES = {EMBEDDED: "apache-2.0"}  # of what comes with the lab; of other bases their own card says it
SETTINGS = ("learning_rate", "num_train_epochs", "max_steps", "global_batch", "seed")
USE = """```python
from transformers import {kind}, AutoTokenizer

model = {kind}.from_pretrained("{where}")
tokenizer = AutoTokenizer.from_pretrained("{where}")
```"""


def card(run: RunDirectory, facts: Mapping[str, Any], where: str) -> str:
    """README.md: YAML for the Hub, then a page for people, who find the model at `where`. `facts` are those of export.json."""
    spec, report = run.spec(), run.report() or {}
    origin, method = base_model(spec), spec["method"]["name"]
    licence = _licence(origin, facts["base"])
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if facts["scores"] else "text-generation",
        "tags": ["alignment-lab", method],
        **({"base_model": origin} if _on_hub(origin) else {}),
        **({"license": licence} if licence else {}),
        **({"datasets": [spec["data"]["path"]]} if spec["data"].get("source") == "hub" else {}),
    }
    kind = "AutoModelForSequenceClassification" if facts["scores"] else "AutoModelForCausalLM"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {spec['name']}",
        f"{origin}, trained with {method} on {_data(spec)} by alignment_lab {__version__}.",
        USE.format(kind=kind, where=where),
        "## How it was made",
        _table(("", ""), _settings(spec, report, facts)),
        "## The weights",
        "\n".join(f"- {line}" for line in in_words(facts)),
        *_measured(report),
        *_command(run),
        *_terms(spec, origin, licence),
    ]
    return "\n\n".join(parts) + "\n"


def base_model(spec: Mapping[str, Any]) -> str:
    """Which weights a run began with, by the name that others know them by."""
    model = spec["model"]
    if model["source"] == "hub":
        return model["path"]
    return EMBEDDED if model["source"] == "embedded" else f"random weights ({model['name']})"


def _on_hub(origin: str) -> bool:
    return origin.count("/") == 1 and origin[0] not in "./~" and not Path(origin).exists()


def _licence(origin: str, base: str | None) -> str | None:
    """What the base's own card says, where it lies beside its weights."""
    own = Path(base or origin, "README.md")
    if origin in LICENCES or not own.is_file():
        return LICENCES.get(origin)
    _, _, behind = own.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        found = yaml.safe_load(behind.partition("\n---")[0])
    except yaml.YAMLError:
        return None
    return str(found["license"]) if isinstance(found, dict) and found.get("license") else None


def _terms(spec: Mapping[str, Any], origin: str, licence: str | None) -> Iterable[str]:
    if spec["model"]["source"] != "random":
        yield "## Licence"
        yield (
            f"The base model is under {licence}."
            if licence
            else f"That of the base model, {origin}, goes with these weights; see there."
        )


def _data(spec: Mapping[str, Any]) -> str:
    data = spec["data"]
    return f"{data['path']} ({data['split']})" if data.get("path") else f"the lab's {data['name']} data"


def _settings(
    spec: Mapping[str, Any], report: Mapping[str, Any], facts: Mapping[str, Any]
) -> Iterable[tuple[str, str]]:
    """Rows of the table: what somebody who compares models wants to know."""
    dials, rows = spec.get("parallel") or {}, report.get("rows") or {}
    method = {name: value for name, value in spec["method"].items() if name != "name"}
    yield "base model", " ".join(filter(None, [base_model(spec), spec["model"].get("revision")]))
    yield "method", _listed({"": spec["method"]["name"], **method})
    yield "data", _data(spec)
    yield "training", _listed({name: spec["training"].get(name) for name in SETTINGS})
    if facts["adapter"]:
        yield (
            "adapter",
            _listed(
                {
                    "": facts["adapter"],
                    "on": dials.get("targets") or "every linear layer",
                    "over": facts["quantization"],
                }
            ),
        )
    if report:
        seen = f"{format_number(report.get('steps'))} steps, {format_number(report.get('tokens'))} tokens"
        yield (
            "seen",
            f"{seen}; {format_number(rows.get('train'))} rows to train on, {format_number(rows.get('eval'))} held out",
        )


def _listed(values: Mapping[str, Any]) -> str:
    """`dpo, beta 0.1`: the values that are set, with their names."""
    told = {
        name: value
        for name, value in values.items()
        if not any(value is unset for unset in (None, False)) and value != "none"
    }
    return ", ".join(f"{name} {value}".strip().replace("|", "\\|") for name, value in told.items())


def _measured(report: Mapping[str, Any]) -> Iterable[str]:
    metrics = report.get("metrics") or {}
    if not metrics:
        return
    rows = [
        (
            name,
            *(format_measured(metrics[name].get(when)) for when in ("before", "after")),
            format_number(n_of_metric(metrics[name])),
        )
        for name in ordered_metrics(metrics)
    ]
    yield "## Held-out rows, before and after"
    yield _table(("metric", "before", "after", "n"), rows)
    yield "Brackets hold the 95% interval of one number over its n held-out rows; another seed of the training is not in them."


def _command(run: RunDirectory) -> Iterable[str]:
    found = read_json(run.provenance_file)
    if not found:
        return
    python, *words = found["command"]
    code = found.get("git") or {}
    at = f", at commit {code['commit']}{' with changes' if code.get('dirty') else ''}" if code else ""
    yield "## The command"
    yield f"In a checkout of alignment_lab{at}:"
    yield f"```\n{shlex.join([Path(python).name, *words])}\n```"


def _table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
