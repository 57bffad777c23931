"""Objectives: identities, symmetry, numbers derived by hand, and TRL as the oracle."""

import math

import pytest
import torch

from alignment_lab.losses import PairLogprobs, dpo


def pair(chosen: list[float], rejected: list[float]) -> PairLogprobs:
    return PairLogprobs(torch.tensor(chosen), torch.tensor(rejected))


REFERENCE = pair([-10.0, -20.0, -3.0], [-12.0, -18.0, -30.0])


def test_dpo_is_log_2_when_policy_is_reference():
    found = dpo(REFERENCE, REFERENCE, beta=0.3, label_smoothing=0.2)
    torch.testing.assert_close(found.losses, torch.full((3,), math.log(2)))
    assert found.chosen_rewards.tolist() == found.rejected_rewards.tolist() == [0, 0, 0]


def test_dpo_by_hand():
    """Chosen gains 2 nats, rejected loses 3: margin 0.1 * 5 = 0.5, and -log sigmoid(0.5) = log(1 + e^-0.5) = 0.474077."""
    found = dpo(pair([-8.0], [-15.0]), pair([-10.0], [-12.0]), beta=0.1)
    assert found.losses.item() == pytest.approx(0.474077, abs=1e-6)
    assert found.chosen_rewards.item() == pytest.approx(0.2)
    assert found.rejected_rewards.item() == pytest.approx(-0.3)


def test_smoothed_dpo_by_hand():
    """The flipped label has -log sigmoid(-0.5) = 0.974077; a tenth of it and nine tenths of 0.474077 are 0.524077."""
    found = dpo(pair([-8.0], [-15.0]), pair([-10.0], [-12.0]), beta=0.1, label_smoothing=0.1)
    assert found.losses.item() == pytest.approx(0.524077, abs=1e-6)


def test_swapping_chosen_and_rejected_flips_the_margin():
    policy = pair([-8.0, -21.0, -3.5], [-15.0, -17.0, -29.0])
    one = dpo(policy, REFERENCE, beta=0.5)
    other = dpo(
        pair(policy.rejected.tolist(), policy.chosen.tolist()), pair(REFERENCE.rejected.tolist(), REFERENCE.chosen.tolist()), beta=0.5
    )
    margins = one.chosen_rewards - one.rejected_rewards
    torch.testing.assert_close(margins, other.rejected_rewards - other.chosen_rewards)
    torch.testing.assert_close(other.losses - one.losses, margins)  # -log s(-m) + log s(m) = m


def test_the_gradient_pushes_chosen_up_and_rejected_down():
    chosen, rejected = torch.tensor([-8.0], requires_grad=True), torch.tensor([-15.0], requires_grad=True)
    found = dpo(PairLogprobs(chosen, rejected), pair([-10.0], [-12.0]), beta=0.1)
    found.losses.sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.1 / (1 + math.exp(0.5)))  # -beta * sigmoid(-margin)
    assert rejected.grad.item() == -chosen.grad.item()
    assert not found.chosen_rewards.requires_grad
