"""One yardstick for all methods on preferences: DPO's implicit reward without beta, from the initial policy.

A method's own rewards differ by its beta, by sums or means over tokens, and by whether there is a reference
at all: pairs that a model ranks right for one method it may rank wrong for another. This is the same for
each, and needs no second model: the initial policy's log-probabilities of held-out answers are known from
the measurement before training.
"""

from __future__ import annotations

from torch import Tensor

from ..config.metrics import IMPLICIT
from ..losses import pair_accuracy


def implicit_rewards(chosen: Tensor, rejected: Tensor, *, paired: bool) -> dict[str, Tensor]:
    """The metrics of log pi(y|x) - log pi_initial(y|x), summed over the answer's tokens: nats.

    [C] of chosen and [R] of rejected answers; `paired`, they belong together one by one. Rafailov et al. 2023
    (arXiv:2305.18290), Eq. 5, without beta and the partition function, which cancels in a pair. A tie counts
    0.5, so that the untrained policy scores what guessing does.
    """
    metrics = {f"{IMPLICIT}chosen": chosen, f"{IMPLICIT}rejected": rejected}
    if not paired:
        return metrics
    margins = chosen - rejected
    accuracies = pair_accuracy(margins, tie=0.5)
    return metrics | {f"{IMPLICIT}margins": margins, f"{IMPLICIT}accuracies": accuracies}
