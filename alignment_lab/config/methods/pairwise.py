"""The settings of the methods on preference pairs that train a policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ..validation import require
from .base import check_beta, check_label_smoothing, check_weight
from .pairwise_base import Divergent, Pairwise, Referenced


@dataclass
class DPO(Divergent):
    """Direct Preference Optimization (arXiv:2305.18290, with a beta of 0.1 to 0.5)."""

    name: str = "dpo"
    label_smoothing: float = 0.0  # cDPO: assumed share of flipped labels, in [0, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_label_smoothing(self.label_smoothing)


@dataclass
class RobustDPO(DPO):
    """DPO with a loss that is unbiased under flipped labels (arXiv:2403.00409)."""

    name: str = "robust_dpo"
    label_smoothing: float = 0.1  # the share of flipped labels; 0 is DPO


@dataclass
class LDDPO(DPO):
    """DPO with a lower weight on tokens beyond the length of the shorter answer (arXiv:2409.06411)."""

    name: str = "ld_dpo"
    alpha: float = 0.5  # their weight: 1 is DPO, 0 leaves them out

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "must lie in [0, 1]: 1 is DPO, 0 leaves the longer answer's excess out."
        require(0 <= self.alpha <= 1, "method.alpha", self.alpha, remedy)

    @property
    def length_damping(self) -> float | None:
        """`alpha`."""
        return self.alpha


@dataclass
class DPONorm(Divergent):
    """DPO on log-ratios per token, as in Tülu 3 (arXiv:2411.15124)."""

    name: str = "dpo_norm"
    beta: float = 5.0  # Tülu 3's; means are some hundred times smaller than DPO's sums


@dataclass
class IPO(Divergent):
    """Identity Preference Optimization (arXiv:2310.12036) on log-ratios per token, as in the authors' code.

    `beta` is the paper's tau: the target of the margin is 1/(2 beta) nats per token.
    """

    name: str = "ipo"


@dataclass
class Hinge(Divergent):
    """SLiC's hinge on log-ratios (arXiv:2305.10425, arXiv:2309.06657).

    From a margin of 1/beta nats on, a pair has no gradient.
    """

    name: str = "hinge"


@dataclass
class EXO(Divergent):
    """Efficient Exact Optimization on pairs (arXiv:2402.00856); `beta` is the paper's beta_r."""

    name: str = "exo"
    label_smoothing: float = 1e-3  # the share of the label on the rejected answer; the paper's, and never 0

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.label_smoothing
        remedy = "must lie between 0 and 0.5: at 0 the loss is infinite, at 0.5 the labels carry no signal."
        require(0 < share < 0.5, "method.label_smoothing", share, remedy)


@dataclass
class DiscoPOP(Divergent):
    """The log-ratio modulated loss, discovered by a language model (arXiv:2406.08414)."""

    name: str = "discopop"
    beta: float = 0.05  # the paper's
    # over how many units of margin the loss goes from logistic to exponential; the paper's.
    # Below 0.102 the first steps lower the margin
    tau: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "must lie in (0, 1]: above 1 the loss grows exponentially on bad pairs."
        require(0 < self.tau <= 1, "method.tau", self.tau, remedy)


@dataclass
class NCA(Referenced):
    """Noise Contrastive Alignment on pairs (arXiv:2402.05369); `beta` is the paper's alpha, there 0.01."""

    name: str = "nca"


@dataclass
class SPPO(Referenced):
    """One round of Self-Play Preference Optimization with certain winners (arXiv:2405.00675).

    The targets of the log-ratios are +-1/(2 beta) nats; the paper's eta is 1/beta, there 1000.
    """

    name: str = "sppo"


@dataclass
class AOT(Referenced):
    """Alignment via Optimal Transport on pairs (arXiv:2406.05882); DPO with a global batch of one row."""

    couples_rows: ClassVar[bool] = True

    name: str = "aot"
    label_smoothing: float = 0.0  # as in DPO

    def __post_init__(self) -> None:
        super().__post_init__()
        check_label_smoothing(self.label_smoothing)
        remedy = "method=aot sorts its margins, so that no loss belongs to one pair; leave it out."
        require(not self.wpo, "method.wpo", "true", remedy)


@dataclass
class APOZero(Referenced):
    """Anchored Preference Optimization for chosen answers better than the model's (arXiv:2408.06266).

    SmolLM3 was trained with a beta of 0.05.
    """

    name: str = "apo_zero"


@dataclass
class APODown(Referenced):
    """Anchored Preference Optimization for a model better than the chosen answers (arXiv:2408.06266)."""

    name: str = "apo_down"


@dataclass
class BCOPair(Referenced):
    """Binary Classifier Optimization on pairs (arXiv:2404.04656, there with a beta of 0.01)."""

    name: str = "bco_pair"


# What MPO can mix. Not aot, whose losses belong to no single pair; not ld_dpo, which needs other sums
MIXABLE = (DPO, RobustDPO, IPO, Hinge, EXO, NCA, SPPO, APOZero, APODown, BCOPair, DiscoPOP, DPONorm)
# Every objective is a key, so that each can be set
MIXTURE = dict.fromkeys((method.name for method in MIXABLE), 0.0) | {"dpo": 0.8, "bco_pair": 0.2}


@dataclass
class MPO(Referenced):
    """Mixed Preference Optimization: a weighted sum of objectives and the NLL (arXiv:2411.10442).

    `beta` goes to every objective; their other settings are their defaults.
    """

    name: str = "mpo"
    sft_weight: float = 1.0  # the paper's
    # weights, the paper's; 0 leaves one out
    objectives: dict[str, float] = field(default_factory=MIXTURE.copy)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in self.objectives.items():
            unknown = f"no such objective; there are: {', '.join(MIXTURE)}."
            require(name in MIXTURE, f"method.objectives.{name}", weight, unknown)
            check_weight(f"objectives.{name}", weight)
        has_weight = any(self.objectives.values())
        require(has_weight, "method.objectives", "all 0", "at least one weight must be above 0.")

    @property
    def parts(self) -> list[tuple[float, Pairwise]]:
        """The objectives that have a weight."""
        schemas = {schema.name: schema for schema in MIXABLE}
        weights = {name: weight for name, weight in self.objectives.items() if weight}
        return [(weight, schemas[name](beta=self.beta)) for name, weight in weights.items()]


@dataclass
class ORPO(Pairwise):
    """Odds Ratio Preference Optimization (arXiv:2403.07691)."""

    averages_logps: ClassVar[bool] = True

    name: str = "orpo"
    sft_weight: float = 1.0  # of the NLL per token
    beta: float = 0.1  # weight of the odds ratio, the paper's lambda
    prompt_loss: bool = (
        True  # NLL of prompt and chosen answer, as the authors' code; false: of the answer, as the paper
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta, "the rejected answer has no effect; that is method=sft")

    @property
    def scores_prompt(self) -> bool:
        """`prompt_loss`, where there is an NLL term."""
        return self.prompt_loss and self.sft_weight > 0


@dataclass
class SimPO(Pairwise):
    """Simple Preference Optimization (arXiv:2405.14734)."""

    averages_logps: ClassVar[bool] = True

    name: str = "simpo"
    beta: float = (
        2.0  # reward per nat of mean log-probability; the paper's is 2 to 2.5, the authors' advice up to 10
    )
    # margin of the rewards: TRL's simpo_gamma, beta times the authors' gamma_beta_ratio, which they tune
    # from 0 to 1, starting at 0.5
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta, "there is no reward")
        in_range = 0 <= self.gamma < math.inf
        require(in_range, "method.gamma", self.gamma, "must be 0 or more: it is the margin of the rewards.")


@dataclass
class AlphaPO(SimPO):
    """SimPO with a reward whose shape alpha bends (arXiv:2501.03884)."""

    name: str = "alphapo"
    alpha: float = 0.25  # towards 0 it is SimPO; above it, an unlikely answer costs more. The paper's

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "must not be 0, where it is method=simpo."
        require(self.alpha != 0 and math.isfinite(self.alpha), "method.alpha", self.alpha, remedy)


@dataclass
class CPO(Pairwise):
    """Contrastive Preference Optimization (arXiv:2401.08417): DPO without a reference, and NLL."""

    name: str = "cpo"
    sft_weight: float = 1.0
    beta: float = 0.1  # reward per nat; the paper's
    label_smoothing: float = 0.0  # as in DPO

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta, "there is no reward")
        check_label_smoothing(self.label_smoothing)


PAIRWISE_SCHEMAS: dict[str, type[Pairwise]] = {
    schema.name: schema
    for schema in (
        *(DPO, RobustDPO, IPO, Hinge, EXO, NCA, SPPO, AOT, APOZero, APODown, BCOPair),
        *(DiscoPOP, DPONorm, LDDPO, MPO, ORPO, SimPO, AlphaPO, CPO),
    )
}
