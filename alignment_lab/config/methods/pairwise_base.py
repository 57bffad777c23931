"""What the methods on preference pairs have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..validation import require
from .base import IMPLICIT_METRICS, REWARD_METRICS, Divergence, Format, Method, check_beta, check_weight


@dataclass
class Pairwise(Method):
    """A method on preference pairs."""

    format: ClassVar[Format] = Format.preference
    # whether `logps/*` are means over an answer's tokens, as TRL has them for what compares means; else sums
    averages_logps: ClassVar[bool] = False

    sft_weight: float = 0.0  # of the chosen answer's NLL per token, added to the loss: RPO
    # WPO: weigh each pair, its NLL included, by how likely the policy is to generate both answers
    # (arXiv:2406.11827)
    wpo: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weight("sft_weight", self.sft_weight)

    @property
    def metrics(self) -> tuple[str, ...]:
        """TRL's, and the NLL where it is a term of the loss."""
        return (*REWARD_METRICS, "rewards/accuracies", *(["nll_loss"] if self.sft_weight else []))

    @property
    def heldout_metrics(self) -> tuple[str, ...]:
        """With the implicit rewards, which are the same for every method."""
        return (*self.metrics, *IMPLICIT_METRICS)

    @property
    def parts(self) -> list[tuple[float, Pairwise]]:
        """The weighted methods whose losses it mixes; none where it has a loss of its own."""
        return []

    @property
    def scores_prompt(self) -> bool:
        """Whether the NLL term covers the prompt as well as the chosen answer."""
        return False

    @property
    def length_damping(self) -> float | None:
        """Weight of the longer answer's tokens beyond the length of the shorter one; None: as any token."""
        return None


@dataclass
class Referenced(Pairwise):
    """A pairwise method that compares the policy with a reference, which is the initial policy."""

    needs_reference: ClassVar[bool] = True

    beta: float = 0.1  # strength of the pull towards the reference: larger stays closer

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta)


@dataclass
class Divergent(Referenced):
    """A method on the difference of two rewards: f-divergences other than reverse KL are defined.

    f-DPO, arXiv:2309.16240.
    """

    divergence: Divergence = Divergence.reverse_kl
    # of divergence=alpha: towards 0 it is reverse KL, towards 1 forward KL; TRL's is 1 minus this
    divergence_alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        alpha = self.divergence_alpha
        remedy = "must lie between 0 and 1; at the ends use method.divergence=reverse_kl or forward_kl."
        require(0 < alpha < 1, "method.divergence_alpha", alpha, remedy)
