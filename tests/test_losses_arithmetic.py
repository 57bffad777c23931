"""What objectives do with numbers: gradients against differences, types, and what is far away or certain."""

from __future__ import annotations

import math

import pytest
import torch
from small_losses import PAIRWISE, bind_method_loss, kto, objectives, reward
from test_losses import LOG_2, MODELS, call, pair
from test_losses_single import GOOD, singles
from torch import Tensor

from alignment_lab import config, losses
from alignment_lab.config import Divergence
from alignment_lab.losses import PairLogprobs

VARIANTS = [(name, {}) for name in PAIRWISE] + [
    (name, {"divergence": divergence})
    for name in PAIRWISE
    for divergence in Divergence
    if issubclass(config.METHOD_SCHEMAS[name], config.Divergent) and divergence is not Divergence.reverse_kl
]
VARIANT_IDS = [f"{name} {knobs['divergence'].name}" if knobs else name for name, knobs in VARIANTS]


@pytest.mark.parametrize(("name", "knobs"), VARIANTS, ids=VARIANT_IDS)
def test_the_gradient_is_that_of_the_loss(name, knobs):
    """Against differences, in float64."""
    objective, reference = bind_method_loss(name, **knobs), MODELS[1]

    def losses_of(chosen: Tensor, rejected: Tensor) -> Tensor:
        policy = PairLogprobs(chosen, rejected, reference.chosen_lengths, reference.rejected_lengths)
        return call(objective, name, policy, reference).losses

    policy = MODELS[0]
    assert torch.autograd.gradcheck(
        losses_of, (policy.chosen.clone().requires_grad_(), policy.rejected.clone().requires_grad_())
    )


def test_the_gradients_of_the_others_are_those_of_their_losses():
    policy, reference = singles(-8.0, -15.0, -3.0, -4.0).requires_grad_(), singles(-10.0, -12.0, -3.5, -3.0)
    kl = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: kto(x, reference, GOOD, kl=kl, beta=0.3, desirable_weight=1.3).losses, (policy,)
    )
    assert torch.autograd.gradcheck(
        lambda x: losses.bco(x, reference, GOOD, beta=0.3, shift=kl).losses, (policy,)
    )
    assert torch.autograd.gradcheck(
        lambda x: reward(x, reference, margin=kl, centering=0.1).losses, (policy,)
    )


@pytest.mark.parametrize(("name", "knobs"), VARIANTS, ids=VARIANT_IDS)
def test_it_computes_in_float32_at_least(name, knobs):
    """Sums that bfloat16 holds exactly: no type changes the loss, and none below float32 is computed in."""
    objective, types = bind_method_loss(name, **knobs), (torch.float64, torch.float32, torch.bfloat16)
    sums = [[-8.0, -21.0, -3.5], [-15.0, -17.0, -29.0]], [[-10.0, -20.0, -3.0], [-12.0, -18.0, -30.0]]
    losses_by_dtype = {
        dtype: call(objective, name, *(pair(*model, dtype=dtype) for model in sums)) for dtype in types
    }
    assert [loss.losses.dtype for loss in losses_by_dtype.values()] == [
        torch.float64,
        torch.float32,
        torch.float32,
    ]
    for loss in losses_by_dtype.values():
        torch.testing.assert_close(
            loss.losses.double(), losses_by_dtype[torch.float64].losses, rtol=2e-5, atol=1e-6
        )
        torch.testing.assert_close(
            loss.chosen_rewards.double(), losses_by_dtype[torch.float64].chosen_rewards, rtol=2e-5, atol=1e-6
        )


def test_the_others_compute_in_float32_at_least():
    policy, reference = (
        torch.tensor(values, dtype=torch.bfloat16) for values in ([-8.0, -15.0], [-10.0, -12.0])
    )
    labels, zero = torch.tensor([True, False]), torch.tensor(0.0)
    results = [
        kto(policy, reference, labels, kl=zero, beta=0.1, desirable_weight=1.1).losses,
        losses.bco(policy, reference, labels, beta=0.1, shift=zero).losses,
        reward(policy, reference).losses,
        losses.kto_kl(policy, reference),
        losses.wpo_weights(policy, reference),
        losses.length_damped_sum(
            policy, torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([1, 1]), 2, alpha=0.5
        ),
    ]
    assert {values.dtype for values in results} == {torch.float32}
    exact = kto(policy.double(), reference.double(), labels, kl=zero, beta=0.1, desirable_weight=1.1)
    # the weight is not rounded to float32
    assert exact.losses[0].item() == pytest.approx(1.1 / (1 + math.exp(0.1 * 2)), rel=1e-14)


FAR = [[-2000.0, -1.0, -2000.0, -1e-9, 0.0], [-1.0, -2000.0, -2000.0, 0.0, 0.0]]


@pytest.mark.parametrize(("name", "knobs"), VARIANTS, ids=VARIANT_IDS)
def test_far_away_it_is_finite(name, knobs):
    """Thousands of nats to either side, and answers that are certain: in float32 neither loss nor gradient
    overflows or is NaN.
    """
    chosen, rejected = (torch.tensor(values, requires_grad=True) for values in FAR)
    reference = pair([-1000.0] * 5, [-1000.0] * 5, dtype=torch.float32)
    lengths = (reference.chosen_lengths, reference.rejected_lengths)
    pair_loss = call(
        bind_method_loss(name, **knobs), name, PairLogprobs(chosen, rejected, *lengths), reference
    )
    pair_loss.losses.sum().backward()
    for values in (pair_loss.losses, chosen.grad, rejected.grad):
        assert values.isfinite().all(), values


def test_orpos_log_odds_are_those_of_the_formula():
    """Near certain, likely and unlikely: log(p / (1 - p)) in float64, and in float32 to its precision."""
    exponents = torch.tensor([1e-6, 1e-3, 0.1, 0.69, 0.7, 3.0, 20.0], dtype=torch.float64)
    model = pair(-exponents, torch.full_like(exponents, -LOG_2), (1, 1))  # the rejected answers have odds 1
    odds = torch.expm1(exponents).reciprocal()  # p / (1 - p) = 1 / (1/p - 1)
    expected = torch.log1p(1 / odds)  # -log sigmoid(log odds)
    torch.testing.assert_close(objectives.orpo(model, beta=1.0).losses, expected)
    single = pair(model.chosen, model.rejected, (1, 1), torch.float32)
    torch.testing.assert_close(
        objectives.orpo(single, beta=1.0).losses.double(), expected, rtol=1e-4, atol=1e-7
    )
