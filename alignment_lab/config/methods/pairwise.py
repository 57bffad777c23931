"""The settings of the methods on preference pairs that train a policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ..validation import require
from .base import Divergence, Format, Method, check_beta, check_smoothing, check_weight


@dataclass
class Pairwise(Method):
    """Any of them."""

    format: ClassVar[Format] = Format.preference
    usual_learning_rate: ClassVar[float] = 1e-6

    sft_weight: float = 0.0  # of the chosen answer's NLL per token, added to the loss
    wpo: bool = (
        False  # weigh each pair by how likely the policy is to say both answers itself (arXiv:2406.11827)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("sft_weight", self.sft_weight)

    @property
    def scores_prompt(self) -> bool:
        """Whether the NLL term covers the prompt as well as the chosen answer."""
        return False

    @property
    def length_damping(self) -> float | None:
        """What a token of the longer answer counts beyond the length of the shorter one; None: as much as any."""
        return None


@dataclass
class Referenced(Pairwise):
    """Those that compare the policy with a reference, which is the initial policy."""

    needs_reference: ClassVar[bool] = True

    beta: float = 0.1  # strength of the pull towards the reference

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta)


@dataclass
class Divergent(Referenced):
    """Those that see only the difference of two rewards, so that other divergences than reverse KL make sense (arXiv:2309.16240)."""

    divergence: Divergence = Divergence.reverse_kl
    divergence_alpha: float = 0.5  # of divergence=alpha: towards 0 it is reverse KL, towards 1 forward KL

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.divergence_alpha
        remedy = "must lie between 0 and 1; at the ends use method.divergence=reverse_kl or forward_kl."
        require(0 < share < 1, "method.divergence_alpha", share, remedy)


@dataclass
class DPO(Divergent):
    """Direct Preference Optimization (arXiv:2305.18290)."""

    name: str = "dpo"
    label_smoothing: float = 0.0  # assumed share of flipped labels, in [0, 0.5): cDPO

    def __post_init__(self) -> None:
        super().__post_init__()
        check_smoothing(self.label_smoothing)


@dataclass
class RobustDPO(DPO):
    """DPO whose mean over flipped labels is the loss on the true ones (arXiv:2403.00409)."""

    name: str = "robust_dpo"
    label_smoothing: float = 0.1


@dataclass
class LDDPO(DPO):
    """DPO in which the tokens of the longer answer beyond the length of the shorter one count less (arXiv:2409.06411)."""

    name: str = "ld_dpo"
    alpha: float = 0.5  # how much they count: 1 is DPO, 0 leaves them out

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.alpha <= 1,
            "method.alpha",
            self.alpha,
            "must lie in [0, 1]: 1 is DPO, 0 leaves the longer answer's excess out.",
        )

    @property
    def length_damping(self) -> float | None:
        """`alpha`."""
        return self.alpha


@dataclass
class DPONorm(Divergent):
    """DPO on log-ratios per token, as in Tülu 3 (arXiv:2411.15124)."""

    usual_learning_rate: ClassVar[float] = 5e-7

    name: str = "dpo_norm"
    beta: float = 5.0


@dataclass
class IPO(Divergent):
    """Identity Preference Optimization (arXiv:2310.12036); log-ratios per token, as its authors do."""

    name: str = "ipo"


@dataclass
class Hinge(Divergent):
    """SLiC's hinge on log-ratios (arXiv:2305.10425, arXiv:2309.06657)."""

    name: str = "hinge"


@dataclass
class EXO(Divergent):
    """Efficient Exact Optimization on pairs (arXiv:2402.00856)."""

    name: str = "exo"
    label_smoothing: float = 1e-3  # how much of the label goes to the rejected answer

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.label_smoothing
        remedy = "must lie between 0 and 0.5: at 0 the loss is infinite, at 0.5 the labels carry no signal."
        require(0 < share < 0.5, "method.label_smoothing", share, remedy)


@dataclass
class DiscoPOP(Divergent):
    """The log-ratio modulated loss that a language model found (arXiv:2406.08414)."""

    usual_learning_rate: ClassVar[float] = 5e-7

    name: str = "discopop"
    beta: float = 0.05
    tau: float = 0.05  # over how many units of margin the loss goes from logistic to exponential

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.tau <= 1,
            "method.tau",
            self.tau,
            "must lie in (0, 1]: above 1 the loss grows exponentially on bad pairs.",
        )


@dataclass
class NCA(Referenced):
    """Noise Contrastive Alignment on pairs (arXiv:2402.05369)."""

    name: str = "nca"


@dataclass
class SPPO(Referenced):
    """Self-Play Preference Optimization, one round of it with certain winners (arXiv:2405.00675)."""

    usual_learning_rate: ClassVar[float] = 5e-7

    name: str = "sppo"


@dataclass
class AOT(Referenced):
    """Alignment via Optimal Transport on pairs (arXiv:2406.05882)."""

    couples_rows: ClassVar[bool] = True

    name: str = "aot"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_smoothing(self.label_smoothing)
        require(
            not self.wpo,
            "method.wpo",
            "true",
            "method=aot sorts its margins, so that no loss belongs to one pair; leave it out.",
        )


@dataclass
class APOZero(Referenced):
    """Anchored Preference Optimization for chosen answers better than the model's (arXiv:2408.06266)."""

    name: str = "apo_zero"


@dataclass
class APODown(Referenced):
    """Anchored Preference Optimization for a model better than the chosen answers (arXiv:2408.06266)."""

    name: str = "apo_down"


@dataclass
class BCOPair(Referenced):
    """Binary Classifier Optimization on pairs (arXiv:2404.04656)."""

    usual_learning_rate: ClassVar[float] = 5e-7

    name: str = "bco_pair"


MIXABLE = (DPO, RobustDPO, IPO, Hinge, EXO, NCA, SPPO, APOZero, APODown, BCOPair, DiscoPOP, DPONorm)
MIXTURE = dict.fromkeys((method.name for method in MIXABLE), 0.0) | {
    "dpo": 0.8,
    "bco_pair": 0.2,
}  # whole: each can be set as a key


@dataclass
class MPO(Referenced):
    """Mixed Preference Optimization: a weighted sum of other objectives and the chosen answer's NLL (arXiv:2411.10442)."""

    name: str = "mpo"
    sft_weight: float = 1.0
    objectives: dict[str, float] = field(default_factory=lambda: MIXTURE.copy())  # weights; 0 leaves one out

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in self.objectives.items():
            require(
                name in MIXTURE,
                f"method.objectives.{name}",
                weight,
                f"no such objective; there are: {', '.join(MIXTURE)}.",
            )
            check_weight(f"objectives.{name}", weight)
        require(
            any(self.objectives.values()),
            "method.objectives",
            "all 0",
            "at least one weight must be above 0.",
        )


@dataclass
class ORPO(Pairwise):
    """Odds Ratio Preference Optimization (arXiv:2403.07691)."""

    usual_learning_rate: ClassVar[float] = 5e-6

    name: str = "orpo"
    sft_weight: float = 1.0
    beta: float = 0.1  # weight of the odds ratio, the paper's lambda
    prompt_loss: bool = True  # NLL of prompt and chosen answer, as in the authors' code; false: of the answer, as in their paper

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta, "the rejected answer has no effect; that is method=sft")

    @property
    def scores_prompt(self) -> bool:
        """Where there is an NLL term and `prompt_loss` is left on."""
        return self.prompt_loss and self.sft_weight > 0


@dataclass
class SimPO(Pairwise):
    """Simple Preference Optimization (arXiv:2405.14734)."""

    usual_learning_rate: ClassVar[float] = 5e-7

    name: str = "simpo"
    beta: float = 2.0  # reward per nat of mean log-probability
    gamma: float = 1.0  # margin of the rewards: TRL's simpo_gamma, beta times the authors' gamma_beta_ratio

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta, "there is no reward")
        require(
            0 <= self.gamma < math.inf,
            "method.gamma",
            self.gamma,
            "must be 0 or more: it is the margin of the rewards.",
        )


@dataclass
class CPO(Pairwise):
    """Contrastive Preference Optimization (arXiv:2401.08417)."""

    name: str = "cpo"
    sft_weight: float = 1.0
    beta: float = 0.1  # reward per nat
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta, "there is no reward")
        check_smoothing(self.label_smoothing)
