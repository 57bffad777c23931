"""Objectives on single answers and scores, and the weights of tokens and pairs: numbers by hand, relations,
the balance of labels.
"""

from __future__ import annotations

import math

import pytest
import torch
from small_losses import kto, objectives, reward
from test_losses import MODELS
from torch import Tensor

from alignment_lab import losses

# ---- weights of tokens and pairs


def test_wpos_weights_by_hand():
    """exp(-0.1 - 0.3) and, above 1 as in TRL, exp(0.2 + 0.1); no gradient goes through."""
    chosen, rejected = torch.tensor([-0.1, 0.2], requires_grad=True), torch.tensor([-0.3, 0.1])
    weights = losses.wpo_weights(chosen, rejected)
    torch.testing.assert_close(weights, torch.tensor([math.exp(-0.4), math.exp(0.3)]))
    assert not weights.requires_grad


def test_desensitised_sums_by_hand():
    """Three completions of 3, 2 and 1 tokens, their tokens mixed; the shorter of their pairs have 1, 1 and 1.

    0: -1 + 0.5 * (-2 - 4) = -4. 1: -8 + 0.5 * -16 = -16. 2: -32.
    """
    tokens = torch.tensor([-1.0, -8, -2, -32, -16, -4], requires_grad=True)
    sequence_ids, positions = torch.tensor([0, 1, 0, 2, 1, 0]), torch.tensor([0, 0, 1, 0, 1, 2])
    sums = losses.length_damped_sum(tokens, sequence_ids, positions, torch.tensor([1, 1, 1]), 3, alpha=0.5)
    assert sums.tolist() == [-4, -16, -32]
    sums.sum().backward()
    assert tokens.grad.tolist() == [1, 1, 0.5, 1, 0.5, 0.5]
    assert losses.length_damped_sum(
        tokens, sequence_ids, positions, torch.tensor([1, 1, 1]), 3, alpha=1.0
    ).tolist() == [
        -7,
        -24,
        -32,
    ]
    assert losses.length_damped_sum(
        tokens, sequence_ids, positions, torch.tensor([1, 1, 1]), 3, alpha=0.0
    ).tolist() == [
        -1,
        -8,
        -32,
    ]


# ---- single answers

GOOD = torch.tensor([True, False, True, False])


def singles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_kto_by_hand():
    """Gains of 2 and -3 nats against a drift of 0.5, beta 0.1: 2 * (1 - sigmoid(0.15)) and 3 * (1 -
    sigmoid(0.35)), whichever the label.
    """
    policy, reference = singles(-8.0, -15.0), singles(-10.0, -12.0)
    options = {"kl": torch.tensor(0.5), "beta": 0.1, "desirable_weight": 2.0, "undesirable_weight": 3.0}
    kto_loss = kto(policy, reference, torch.tensor([True, False]), **options)
    torch.testing.assert_close(kto_loss.losses, singles(2 * 0.46257015, 3 * 0.41338242))
    torch.testing.assert_close(kto_loss.rewards, singles(0.2, -0.3))
    flipped = kto(policy, reference, torch.tensor([False, True]), **options)
    torch.testing.assert_close(flipped.losses, singles(3 * (1 - 0.46257015), 2 * (1 - 0.41338242)))


def test_kto_is_a_half_of_each_weight_at_first():
    """Policy and reference are one, so the drift is 0 and every answer is worth as much as another."""
    same = singles(-3.0, -4.0, -5.0, -6.0)
    kto_loss = kto(
        same, same, GOOD, kl=losses.kto_kl(same, same), beta=0.3, desirable_weight=1.0, undesirable_weight=1.5
    )
    assert kto_loss.losses.tolist() == [0.5, 0.75, 0.5, 0.75]


def test_apo_zero_is_kto_on_both_answers_without_a_drift():
    policy, reference = MODELS
    zero, yes = torch.tensor(0.0), torch.ones(4, dtype=torch.bool)
    chosen = kto(policy.chosen, reference.chosen, yes, kl=zero, beta=0.1)
    rejected = kto(policy.rejected, reference.rejected, ~yes, kl=zero, beta=0.1)
    torch.testing.assert_close(
        chosen.losses + rejected.losses, objectives.apo_zero(policy, reference, beta=0.1).losses
    )


def test_bco_pair_is_bco_on_both_answers_without_a_shift():
    policy, reference = MODELS
    zero, yes = torch.tensor(0.0), torch.ones(4, dtype=torch.bool)
    chosen = losses.bco(policy.chosen, reference.chosen, yes, beta=0.1, shift=zero)
    rejected = losses.bco(policy.rejected, reference.rejected, ~yes, beta=0.1, shift=zero)
    torch.testing.assert_close(
        chosen.losses + rejected.losses, objectives.bco_pair(policy, reference, beta=0.1).losses
    )


def test_bco_by_hand():
    """Rewards 0.2 and -0.3 against a shift of 0.05: log(1 + e^-0.15) for the good one, log(1 + e^-0.35) for
    the bad one.
    """
    bco_loss = losses.bco(
        singles(-8.0, -15.0),
        singles(-10.0, -12.0),
        torch.tensor([True, False]),
        beta=0.1,
        shift=torch.tensor(0.05),
    )
    torch.testing.assert_close(
        bco_loss.losses, singles(math.log1p(math.exp(-0.15)), math.log1p(math.exp(-0.35)))
    )
    torch.testing.assert_close(bco_loss.rewards, singles(0.2, -0.3))


def test_ktos_reference_point_is_a_clamped_mean_without_gradient():
    policy = torch.tensor([-3.0, -5.0], requires_grad=True)
    kl = losses.kto_kl(policy, torch.tensor([-4.0, -5.5]))
    assert kl.item() == 0.75
    assert not kl.requires_grad
    assert losses.kto_kl(policy, torch.tensor([-2.0, -5.5])).item() == 0


@pytest.mark.parametrize("desirable", [1, 2, 3, 4, 5, 90, 1000])
@pytest.mark.parametrize("undesirable", [1, 2, 3, 4, 5, 90, 1000])
def test_balanced_weights_keep_ktos_rule(desirable, undesirable):
    """The ratio lies in [1, 4/3]; one weight is 1, none is below it, and both are 1 where that is enough."""
    weights = losses.balanced_weights(desirable, undesirable)
    ratio = weights[0] * desirable / (weights[1] * undesirable)
    assert 1 - 1e-12 <= ratio <= 4 / 3 + 1e-12
    assert min(weights) == 1.0
    enough = 1 <= desirable / undesirable <= 4 / 3
    assert (weights == (1.0, 1.0)) == enough
    assert enough or ratio == pytest.approx(1 if desirable < undesirable else 4 / 3)


def test_balanced_weights_by_hand():
    """300 to 100: 3 becomes 4/3 where the hundred count 2.25 times. 100 to 300: three times. One class:
    nothing to balance.
    """
    assert losses.balanced_weights(300, 100) == (1.0, 2.25)
    assert losses.balanced_weights(100, 300) == (3.0, 1.0)
    assert losses.balanced_weights(100, 0) == losses.balanced_weights(0, 100) == (1.0, 1.0)


# ---- reward model


def test_reward_by_hand():
    """Scores 1.5 and -0.5: log(1 + e^-2) = 0.126928; a margin of 1 leaves log(1 + e^-1) = 0.313262; centring
    adds 0.01 * 1^2.
    """
    chosen, rejected = torch.tensor([1.5]), torch.tensor([-0.5])
    assert reward(chosen, rejected).losses.item() == pytest.approx(0.126928, abs=1e-6)
    pair_loss = reward(chosen, rejected, margin=torch.tensor([1.0]), centering=0.01)
    assert pair_loss.losses.item() == pytest.approx(0.323262, abs=1e-6)
    assert (pair_loss.chosen_rewards.item(), pair_loss.rejected_rewards.item()) == (1.5, -0.5)


def test_only_centring_sees_what_both_scores_have():
    chosen, rejected = torch.tensor([1.5, 2.0]), torch.tensor([-0.5, 0.0])
    torch.testing.assert_close(reward(chosen + 7, rejected + 7).losses, reward(chosen, rejected).losses)
    assert (
        reward(chosen + 7, rejected + 7, centering=0.1).losses
        > reward(chosen, rejected, centering=0.1).losses
    ).all()
