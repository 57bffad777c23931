"""What a model card says of the use of a model: the code that loads it, what it is for, and what is not
known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .write import ExportFacts

PLAIN = """```python
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained({place})
tokenizer = AutoTokenizer.from_pretrained({place})
```"""
ADAPTER = """```python
from peft import PeftModel
from transformers import {auto_class}, AutoTokenizer

base = {auto_class}.from_pretrained("{base}"{more})
model = PeftModel.from_pretrained(base, {place})
tokenizer = AutoTokenizer.from_pretrained({place})
```"""


def usage(facts: ExportFacts, location: str, revision: str | None, base: str, *, on_hub: bool) -> str:
    """The code that loads it with plain transformers, or an adapter with plain peft."""
    auto_class = "AutoModelForSequenceClassification" if facts["scores"] else "AutoModelForCausalLM"
    place = f'"{location}"' + (f', revision="{revision}"' if revision else "")
    if not facts["adapter"] or facts["is_merged"]:
        return PLAIN.format(auto_class=auto_class, place=place)
    more = ", num_labels=1" if facts["scores"] else ""
    named = base if on_hub else "BASE"
    code = ADAPTER.format(auto_class=auto_class, place=place, base=named, more=more)
    where = f"`BASE` is a folder with the weights that it was trained on: {base}."
    return code if on_hub else f"{code}\n\n{where}"


def intended_use(facts: ExportFacts, method: str) -> str:
    """What the model was made for."""
    if facts["scores"]:
        return (
            "Scoring answers: of two answers to one prompt the one with the higher score is the one that the "
            "data's annotators would sooner prefer. Scores of different prompts are not comparable."
        )
    if method == "cpt":
        return (
            "Research on continued pre-training; it continues texts, and was not trained to answer anybody."
        )
    return (
        f"Research on alignment: what {method} does to this base model on these data, against other "
        "methods on the same rows. The chat template that it was trained with comes with the tokenizer."
    )


def limits(facts: ExportFacts, report: Mapping[str, Any], base: str) -> Iterator[str]:
    """What was not measured, and what the figures do not say."""
    if facts["step"]:
        yield f"It is a checkpoint of a run that went on: step {facts['step']}."
    held_out = (report.get("rows") or {}).get("eval")
    if held_out:
        yield f"Measured on {held_out:,} held-out rows of its own data, which say little of other prompts."
    else:
        yield "It was not measured on held-out rows."
    yield "One training seed: another one gives another model, and other figures."
    yield "It was not tested for safety, facts or bias; it may be wrong and offensive with confidence."
    yield f"It has the languages, the knowledge and the flaws of {base}, and those of its data."
