"""The eval group: what is measured before and after training, what a search optimizes, and what
`action=evaluate` measures of which models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ..metrics import Direction
from ..validation import SpecError, require, require_nonnegative, require_positive
from .harnesses import AlpacaEval, Ifbench, LmEval, MtBench
from .winrate import WinrateMeasure

# Each has a node of settings of its name, and a row in MEASURES.
Measure = Enum(
    "Measure",
    ["preference", "perplexity", "generate", "winrate", "lm_eval", "ifbench", "mt_bench", "alpaca_eval"],
)


@dataclass
class PreferenceMeasure:
    """Held-out pairs: which answer the model prefers, and by how much."""

    length_ratio: float = (
        1.1  # the longer answer of a length-matched pair has at most so many times the tokens
    )

    def __post_init__(self) -> None:
        ratio = self.length_ratio
        require(
            ratio >= 1, "eval.preference.length_ratio", ratio, "must be 1 or more; 1: equally long answers."
        )


@dataclass
class PerplexityMeasure:
    """The probability of held-out texts, or of the data's answers to held-out prompts."""

    window: int | None = None  # tokens that are read at once; null: data.max_length
    stride: int | None = None  # new tokens of each window of a long text; null: half of the window

    def __post_init__(self) -> None:
        require_positive("eval.perplexity", self, "window", "stride")
        fits = self.window is None or self.stride is None or self.stride < self.window
        require(
            fits,
            "eval.perplexity.stride",
            self.stride,
            f"must be below eval.perplexity.window={self.window}.",
        )


@dataclass
class GenerateMeasure:
    """Answers that the model writes to held-out prompts, and how far they are from the reference."""

    n: int = 4  # answers to each prompt
    temperature: float = 1.0  # 0: the most likely token; the KL divergence needs 1
    top_p: float = 1.0  # of the most likely tokens that have this much of the probability; the KL needs 1
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive("eval.generate", self, "n")
        require_nonnegative("eval.generate", self, "temperature", "seed")
        require(0 < self.top_p <= 1, "eval.generate.top_p", self.top_p, "must be above 0, and 1 at most.")
        same = self.n > 1 and not self.temperature
        require(
            not same, "eval.generate.n", self.n, "at temperature 0 all answers are the same; set it to 1."
        )


@dataclass
class Eval:
    """What is measured before and after training, and by `action=evaluate`."""

    rows: int = 64  # held-out rows whose metrics are computed; 0: none
    generations: int = 64  # held-out prompts that are answered; 0: none
    max_new_tokens: int = 64
    batch: int = 32  # prompts answered at once
    objective: str | None = None  # metric that a search optimizes; null: preference accuracy, else eval_loss
    direction: Direction | None = None  # which way is better; null: as in the table of metrics
    # of action=evaluate: runs, checkpoints, adapters, folders, Hub ids; none: the composed model
    models: list[str] = field(default_factory=list)
    before: bool = False  # the initial policies of the runs too, before each
    measures: list[Measure] = field(default_factory=lambda: [Measure.preference])
    # what is measured of a run as its last stage, into its own folder evaluation/; with `before` both ends
    after: list[Measure] = field(default_factory=list)
    # a model that KL and implicit rewards are measured from; null: a run's initial policy, an adapter's base
    reference: str | None = None
    # rows: those that the first run held out (true), or those of `data` (false); null: `data` where the
    # command line names it
    own_data: bool | None = None
    preference: PreferenceMeasure = field(default_factory=PreferenceMeasure)
    perplexity: PerplexityMeasure = field(default_factory=PerplexityMeasure)
    generate: GenerateMeasure = field(default_factory=GenerateMeasure)
    winrate: WinrateMeasure = field(default_factory=WinrateMeasure)
    lm_eval: LmEval = field(default_factory=LmEval)
    ifbench: Ifbench = field(default_factory=Ifbench)
    mt_bench: MtBench = field(default_factory=MtBench)
    alpaca_eval: AlpacaEval = field(default_factory=AlpacaEval)

    def __post_init__(self) -> None:
        require_nonnegative("eval", self, "rows", "generations")
        require_positive("eval", self, "max_new_tokens", "batch")
        repeated = [name for place, name in enumerate(self.models) if name in self.models[:place]]
        if repeated:
            raise SpecError(f"eval.models: {repeated[0]} is there twice; name each model once.")
        require(bool(self.measures), "eval.measures", "[]", "name at least one: eval.measures=[preference].")
        self.measures = list(dict.fromkeys(self.measures))
        self.after = list(dict.fromkeys(self.after))
