"""Objectives: identities, numbers derived by hand, symmetries, gradients, and the settings that they take."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import pytest
import torch
from small_losses import PAIRWISE, bind_method_loss, objectives

from alignment_lab import config, losses
from alignment_lab.config import Divergence
from alignment_lab.config.methods import MIXABLE
from alignment_lab.losses import PairLogprobs, PairLoss
from alignment_lab.losses.divergences import derivative

LOG_2 = math.log(2)
REFERENCED = [name for name in PAIRWISE if config.METHOD_SCHEMAS[name].needs_reference]
FUNCTIONS: dict[str, Callable[..., Any]] = losses.PAIRWISE_LOSSES | {
    "reward": losses.bradley_terry,
    "kto": losses.kto,
    "bco": losses.bco,
}


def pair(
    chosen: Any, rejected: Any, lengths: tuple[Any, Any] = (4, 2), dtype: torch.dtype = torch.float64
) -> PairLogprobs:
    """Log-probabilities as floats or tensors; the lengths are the same for every row."""
    sums = [torch.as_tensor(value, dtype=dtype).reshape(-1) for value in (chosen, rejected)]
    return PairLogprobs(*sums, *(torch.as_tensor(length).expand(len(sums[0])) for length in lengths))


def swap_answers(model: PairLogprobs) -> PairLogprobs:
    """Chosen for rejected."""
    return PairLogprobs(model.rejected, model.chosen, model.rejected_lengths, model.chosen_lengths)


def keyword_parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters, and their defaults."""
    return {
        name: p.default
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }


def call(
    objective: Callable[..., PairLoss], name: str, policy: PairLogprobs, reference: PairLogprobs
) -> PairLoss:
    return objective(policy, reference) if name in REFERENCED else objective(policy)


# ---- functions and settings


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_keyword_is_a_setting_and_its_default_stands_in_the_schema_alone(name):
    """Some come from elsewhere: KTO's reference point and BCO's shift from the batch, a margin from the row,
    MPO's parts.
    """
    settings = {field.name for field in fields(config.METHOD_SCHEMAS[name])}
    for key, default in keyword_parameters(FUNCTIONS[name]).items():
        assert (key in settings) == (key not in ("kl", "shift", "margin", "parts"))
        assert default is inspect.Parameter.empty


@pytest.mark.parametrize("name", PAIRWISE)
def test_an_objective_takes_a_reference_where_its_method_needs_one(name):
    positional = [
        p.name
        for p in inspect.signature(FUNCTIONS[name]).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert positional == (
        ["policy", "reference"] if config.METHOD_SCHEMAS[name].needs_reference else ["policy"]
    )


def test_every_method_on_pairs_has_its_loss_and_the_other_way_round():
    assert list(losses.PAIRWISE_LOSSES) == PAIRWISE
    assert set(PAIRWISE) | {"reward", "sft", "cpt", "kto", "bco"} == set(config.METHOD_SCHEMAS)


def test_what_can_be_mixed_is_what_the_settings_offer():
    """All with a reference but three: itself, one whose losses are no pair's own, one that needs other
    sums.
    """
    mixable = [schema.name for schema in MIXABLE]
    assert mixable == list(config.MPO().objectives)
    assert set(mixable) == set(REFERENCED) - {"mpo", "aot", "ld_dpo"}
    parts = config.MPO(beta=0.3, objectives=dict.fromkeys(mixable, 2.0)).parts
    assert [(weight, part.name, part.beta) for weight, part in parts] == [
        (2.0, name, 0.3) for name in mixable
    ]


# ---- where policy and reference are one

IDENTITIES = {  # at beta 0.25 and, where nothing is said, the default knobs
    "dpo": LOG_2,
    "robust_dpo": LOG_2,  # (0.9 log 2 - 0.1 log 2) / 0.8
    "ld_dpo": LOG_2,
    "dpo_norm": LOG_2,
    "ipo": 4.0,  # (1 / (2 beta))^2
    "hinge": 1.0,
    "exo": -LOG_2 - 0.5 * math.log(1e-3 * (1 - 1e-3)),  # KL of (1/2, 1/2) to (1-e, e)
    "discopop": (LOG_2 + 1) / 2,
    "nca": 2 * LOG_2,  # log 2 + (log 2 + log 2) / 2
    "sppo": 8.0,  # twice the same target, squared
    "aot": LOG_2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "bco_pair": 2 * LOG_2,
    "mpo": 1.2 * LOG_2,  # 0.8 log 2 + 0.2 * 2 log 2
    "orpo": 0.25 * LOG_2,  # the same odds
    "simpo": math.log(1 + math.e),  # nothing but the margin of 1: -log sigmoid(-1)
    "alphapo": math.log(1 + math.e),  # the same margin
    "cpo": LOG_2,
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_first_loss(name):
    """Policy and reference are one; without a reference, both answers are as likely and as long."""
    sums = [-10.0, -20.0, -3.0]
    model = pair(sums, [-12.0, -18.0, -30.0]) if name in REFERENCED else pair(sums, sums, (5, 5))
    pair_loss = call(bind_method_loss(name, beta=0.25), name, model, model)
    torch.testing.assert_close(pair_loss.losses, torch.full_like(model.chosen, IDENTITIES[name]))
    if name in REFERENCED:
        assert pair_loss.chosen_rewards.tolist() == pair_loss.rejected_rewards.tolist() == [0, 0, 0]
    else:
        assert pair_loss.chosen_rewards.tolist() == pair_loss.rejected_rewards.tolist()


FIRST_GRADIENT_SIGNS = dict.fromkeys(
    PAIRWISE, (-1, 1)
) | {  # the signs of the first gradient: chosen up, rejected down
    "apo_down": (0, 1),  # down as a good answer, up as the better one: the same at first
    "discopop": (1, -1),  # (1 - log 2) / (4 * 0.05) - 3/4 is above 0
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_first_gradient(name):
    chosen, rejected = (torch.tensor([-10.0], dtype=torch.float64, requires_grad=True) for _ in range(2))
    pair_loss = call(
        bind_method_loss(name),
        name,
        PairLogprobs(chosen, rejected, torch.tensor([5]), torch.tensor([5])),
        pair(-10.0, -10.0),
    )
    pair_loss.losses.sum().backward()
    assert (chosen.grad.sign().item(), rejected.grad.sign().item()) == FIRST_GRADIENT_SIGNS[name]
    assert not pair_loss.chosen_rewards.requires_grad and not pair_loss.rejected_rewards.requires_grad


@pytest.mark.parametrize(("tau", "sign"), [(0.102, 1), (0.103, -1)])
def test_discopops_first_step_lowers_the_margin_below_a_tau_of_0_1023(tau, sign):
    """(1 - log 2) / (4 tau) = 3/4 at tau = 0.10228."""
    chosen, zero = (
        torch.zeros(1, dtype=torch.float64, requires_grad=True),
        torch.zeros(1, dtype=torch.float64),
    )
    length = torch.ones(1)
    pair_loss = objectives.discopop(
        PairLogprobs(chosen, zero, length, length),
        PairLogprobs(zero, zero, length, length),
        beta=1.0,
        tau=tau,
    )
    pair_loss.losses.backward()
    assert chosen.grad.sign().item() == sign
    assert chosen.grad.item() == pytest.approx((1 - LOG_2) / (4 * tau) - 0.75)


# ---- numbers by hand

POLICY, REFERENCE = pair(-8.0, -15.0), pair(-10.0, -12.0)

BY_HAND = [
    (partial(objectives.dpo, beta=0.1), 0.474077),
    (partial(objectives.dpo, beta=0.1, label_smoothing=0.1), 0.524077),
    (partial(objectives.ld_dpo, beta=0.1, label_smoothing=0.1), 0.524077),
    (partial(objectives.robust_dpo, beta=0.1, label_smoothing=0.1), 0.411577),
    (partial(objectives.dpo_norm, beta=0.1), 0.598139),
    (partial(objectives.ipo, beta=0.1), 9.0),
    (partial(objectives.hinge, beta=0.1), 0.5),
    (partial(objectives.exo, beta=0.1, label_smoothing=0.1), 0.272055),
    (partial(objectives.discopop, beta=0.1, tau=0.5), 0.570909),
    (partial(objectives.nca, beta=0.1), 1.274386),
    (partial(objectives.sppo, beta=0.1), 13.0),
    (partial(objectives.aot, beta=0.1), 0.474077),
    (partial(objectives.apo_zero, beta=0.1), 0.875723),
    (partial(objectives.apo_down, beta=0.1), 0.927375),
    (partial(objectives.bco_pair, beta=0.1), 1.152494),
    (partial(objectives.mpo, beta=0.1, objectives={"hinge": 0.5, "sppo": 2.0}), 26.25),
]


@pytest.mark.parametrize(
    ("objective", "expected"),
    BY_HAND,
    ids=lambda value: value.func.__name__ if isinstance(value, partial) else "",
)
def test_by_hand_with_a_reference(objective, expected):
    """The chosen answer of 4 tokens gains 2 nats over its reference, the rejected one of 2 tokens loses 3.

    beta is 0.1.

    Margin m = 0.1 * 5 = 0.5, rewards r_w = 0.2 and r_l = -0.3; with L(x) = -log sigmoid(x) = log(1 + e^-x):
    L(0.5) = 0.474077, L(-0.5) = 0.974077, L(0.2) = 0.598139, L(-0.2) = 0.798139, L(0.3) = 0.554355.

    dpo         L(0.5)
      smoothed  0.9 * 0.474077 + 0.1 * 0.974077
    robust_dpo  (0.9 * 0.474077 - 0.1 * 0.974077) / 0.8
    dpo_norm    per token 2/4 and -3/2, 2 apart: L(0.2)
    ipo         (2 - 1/0.2)^2
    hinge       1 - 0.5
    exo         sigmoid(0.5) = 0.622459: 0.622459 * (-0.474077 - log 0.9) + 0.377541 * (-0.974077 - log 0.1)
    discopop    sigmoid(0.5 / 0.5) = 0.731059: 0.268941 * 0.474077 + 0.731059 * e^-0.5
    nca         L(0.2) + L(-0.2) / 2 + L(0.3) / 2
    sppo        (2 - 5)^2 + (-3 + 5)^2
    aot         one pair, so dpo
    apo_zero    sigmoid(-0.2) + sigmoid(-0.3) = 0.450166 + 0.425557
    apo_down    sigmoid(0.2) + sigmoid(-0.5) = 0.549834 + 0.377541
    bco_pair    L(0.2) + L(0.3)
    mpo         0.5 * 0.5 + 2 * 13
    """
    pair_loss = objective(POLICY, REFERENCE)
    assert pair_loss.losses.item() == pytest.approx(expected, abs=1e-6)
    assert pair_loss.chosen_rewards.item() == pytest.approx(0.2)
    assert pair_loss.rejected_rewards.item() == pytest.approx(-0.3)


FREE_BY_HAND = [
    (partial(objectives.cpo, beta=0.1), 0.403186, -0.8),
    (partial(objectives.cpo, beta=0.1, label_smoothing=0.1), 0.473186, -0.8),
    (partial(objectives.simpo, beta=0.1, gamma=0.2), 0.533382, -0.2),
    (partial(objectives.orpo, beta=0.1), 0.000353, -0.2),
    (partial(objectives.alphapo, beta=0.1, gamma=0.2, alpha=0.5), 0.000426, -0.3436564),
]


@pytest.mark.parametrize(("objective", "expected", "reward"), FREE_BY_HAND)
def test_by_hand_without_a_reference(objective, expected, reward):
    """The policy gives the chosen answer -8 nats over 4 tokens (-2 each), the rejected one -15 over 2 (-7.5).

    beta is 0.1.

    cpo    L(0.1 * 7) = log(1 + e^-0.7) = 0.403186; smoothed by 0.1, a tenth of the margin of 0.7 more
    simpo  L(0.1 * 5.5 - 0.2) = L(0.35)
    alphapo  rewards 2 * (1 - e^1) = -3.436564 and 2 * (1 - e^3.75) = -83.042164:
             L(0.1 * 79.605600 - 0.2) = L(7.760560)
    orpo   odds e^-2 / (1 - e^-2) = 0.156518 and e^-7.5 / (1 - e^-7.5) = 0.000553390;
           log of their ratio 5.644865; 0.1 * L(5.644865)
    """
    pair_loss = objective(POLICY)
    assert pair_loss.losses.item() == pytest.approx(expected, abs=1e-6)
    assert pair_loss.chosen_rewards.item() == pytest.approx(reward)


def test_slopes_by_hand():
    """f' at ratios e^2 and e^-3; 0 at 1, as every one of them."""
    ratios = torch.tensor([0.0, 2.0, -3.0], dtype=torch.float64)
    expected = {
        Divergence.reverse_kl: [0, 2, -3],
        Divergence.forward_kl: [0, 1 - math.exp(-2), 1 - math.exp(3)],
        Divergence.js: [
            0,
            math.log(2 * math.exp(2) / (1 + math.exp(2))),
            math.log(2 * math.exp(-3) / (1 + math.exp(-3))),
        ],
        Divergence.alpha: [0, 2 * (1 - math.exp(-1)), 2 * (1 - math.exp(1.5))],
    }
    assert expected.keys() == set(Divergence)
    for divergence, values in expected.items():
        torch.testing.assert_close(
            derivative(ratios, divergence, 0.5), torch.tensor(values, dtype=torch.float64)
        )


def test_alpha_divergence_lies_between_reverse_and_forward_kl():
    ratios = torch.linspace(-3, 3, 13, dtype=torch.float64)
    near = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(
        derivative(ratios, Divergence.alpha, 1e-6), derivative(ratios, Divergence.reverse_kl, 0.5), **near
    )
    torch.testing.assert_close(
        derivative(ratios, Divergence.alpha, 1 - 1e-6), derivative(ratios, Divergence.forward_kl, 0.5), **near
    )


def test_a_divergence_bends_the_loss_and_not_the_rewards():
    """Rewards are beta times log-ratios for all of them, as TRL logs them: 0.2 and -0.3."""
    losses = set()
    for divergence in Divergence:
        pair_loss = objectives.dpo(POLICY, REFERENCE, beta=0.1, divergence=divergence)
        losses.add(round(pair_loss.losses.item(), 6))
        assert pair_loss.chosen_rewards.item() == pytest.approx(0.2)
        assert pair_loss.rejected_rewards.item() == pytest.approx(-0.3)
    assert len(losses) == len(Divergence)


# ---- symmetries and relations

MODELS = [
    pair([-8.0, -21.0, -3.5, -40.0], [-15.0, -17.0, -29.0, -41.0]),
    pair([-10.0, -20.0, -3.0, -44.0], [-12.0, -18.0, -30.0, -41.0]),
]


@pytest.mark.parametrize("name", PAIRWISE)
def test_swapping_the_answers_swaps_their_rewards(name):
    objective = bind_method_loss(name)
    original, swapped = (
        call(objective, name, *models) for models in (MODELS, [swap_answers(model) for model in MODELS])
    )
    torch.testing.assert_close(original.chosen_rewards, swapped.rejected_rewards)
    torch.testing.assert_close(original.rejected_rewards, swapped.chosen_rewards)


@pytest.mark.parametrize("name", ["dpo", "ld_dpo", "cpo"])
def test_swapping_the_answers_adds_the_margin(name):
    """-log sigmoid(-m) + log sigmoid(m) = m."""
    objective = bind_method_loss(name)
    original, swapped = (
        call(objective, name, *models) for models in (MODELS, [swap_answers(model) for model in MODELS])
    )
    torch.testing.assert_close(
        swapped.losses - original.losses, original.chosen_rewards - original.rejected_rewards
    )


@pytest.mark.parametrize("name", REFERENCED)
def test_what_both_models_gain_changes_nothing(name):
    """Only log-ratios count where there is a reference."""
    policy, reference = MODELS
    moved = [pair(model.chosen - 7.0, model.rejected + 3.0) for model in (policy, reference)]
    objective = bind_method_loss(name)
    torch.testing.assert_close(objective(*moved).losses, objective(policy, reference).losses)


@pytest.mark.parametrize("name", PAIRWISE)
def test_what_is_averaged_is_blind_to_length(name):
    """Each answer twice over, tokens and log-probabilities: the same loss for means, another for sums."""
    doubled_models = [pair(2 * model.chosen, 2 * model.rejected, (8, 4)) for model in MODELS]
    objective = bind_method_loss(name)
    original, doubled = call(objective, name, *MODELS).losses, call(objective, name, *doubled_models).losses
    assert torch.allclose(original, doubled) == (name in ("ipo", "dpo_norm", "orpo", "simpo", "alphapo"))


def test_cpo_is_dpo_with_a_uniform_reference():
    """Smoothed too: TRL's DPO no longer has cDPO, its CPO has."""
    policy, _ = MODELS
    for smoothing in (0.0, 0.2):
        options = {"beta": 0.3, "label_smoothing": smoothing}
        torch.testing.assert_close(
            objectives.dpo(policy, pair([0.0] * 4, [0.0] * 4), **options).losses,
            objectives.cpo(policy, **options).losses,
        )


def test_robust_dpos_mean_over_flipped_labels_is_dpo_on_the_true_ones():
    """0.8 of the loss on the label and 0.2 of the loss on its opposite."""
    flipped = [swap_answers(model) for model in MODELS]
    robust_losses = [
        objectives.robust_dpo(*models, beta=0.3, label_smoothing=0.2).losses for models in (MODELS, flipped)
    ]
    torch.testing.assert_close(
        0.8 * robust_losses[0] + 0.2 * robust_losses[1], objectives.dpo(*MODELS, beta=0.3).losses
    )


def test_exo_is_the_kl_from_the_policys_label_to_the_smoothed_one():
    pair_loss = objectives.exo(*MODELS, beta=0.3, label_smoothing=0.2)
    margins = pair_loss.chosen_rewards - pair_loss.rejected_rewards
    ours, data = (
        torch.distributions.Bernoulli(probs=p)
        for p in (margins.sigmoid(), torch.tensor(0.8, dtype=torch.float64))
    )
    torch.testing.assert_close(pair_loss.losses, torch.distributions.kl_divergence(ours, data))


def test_ipo_and_sppo_rest_at_their_targets():
    """1 / (2 * 0.1) = 5: nats per token for IPO, over 4 and 2 tokens; nats for either answer for SPPO."""
    zeros = pair(0.0, 0.0)
    assert objectives.ipo(pair(8.0, -6.0), zeros, beta=0.1).losses.item() == pytest.approx(0, abs=1e-20)
    assert objectives.sppo(pair(5.0, -5.0), zeros, beta=0.1).losses.item() == pytest.approx(0, abs=1e-20)


def test_aot_compares_sorted_margins():
    """Margins 7, -4, 25.5, 1 of the policy and 2, -2, 27, -3 of the reference: sorted, -4 + 3, 1 + 2, 7 - 2,
    25.5 - 27.
    """
    pair_loss = objectives.aot(*MODELS, beta=0.1)
    gaps = torch.tensor([-1.0, 3.0, 5.0, -1.5], dtype=torch.float64)
    torch.testing.assert_close(pair_loss.losses, torch.log1p(torch.exp(-0.1 * gaps)))
    permutation = torch.tensor([2, 0, 3, 1])
    permuted = objectives.aot(
        *(pair(model.chosen[permutation], model.rejected[permutation]) for model in MODELS), beta=0.1
    )
    torch.testing.assert_close(permuted.losses, pair_loss.losses)
    torch.testing.assert_close(permuted.chosen_rewards, pair_loss.chosen_rewards[permutation])
    assert pair_loss.losses.mean() != objectives.dpo(*MODELS, beta=0.1).losses.mean()


def test_weighted_adds_losses_and_averages_rewards():
    """2 * (1, 2) + 6 * (10, 20) = (62, 124); rewards 1/4 and 3/4 of each."""
    parts = [
        PairLoss(*torch.tensor(values))
        for values in ([[1.0, 2], [4, 8], [0, 4]], [[10.0, 20], [8, 0], [4, 4]])
    ]
    pair_loss = losses.weighted_sum([(2.0, parts[0]), (6.0, parts[1])])
    assert [values.tolist() for values in vars(pair_loss).values()] == [[62, 124], [7, 2], [3, 4]]


def test_an_objective_of_weight_0_is_left_out():
    """IPO's rewards are of another kind, and would be seen."""
    kept = objectives.mpo(*MODELS, beta=0.1, objectives={"dpo": 2.0, "ipo": 0.0})
    alone = objectives.dpo(*MODELS, beta=0.1)
    torch.testing.assert_close(kept.losses, 2 * alone.losses)
    torch.testing.assert_close(kept.chosen_rewards, alone.chosen_rewards)
