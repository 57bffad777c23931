"""Every objective that TRL has against TRL's own code: value and gradient, on a batch of TRL's collator, in
float64.

TRL's fused head computes log-probabilities in float32 whatever the model is; here it is replaced by the same
quantities in the model's own type, so that what is compared is the objective. Everything on our side comes
from the model's plain logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from datasets import Dataset
from small_losses import kto, objectives, reward
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from alignment_lab import losses
from alignment_lab.config import Divergence
from alignment_lab.config.methods import MIXABLE
from alignment_lab.losses import PairLogprobs, PairLoss

EXACT = {"rtol": 1e-9, "atol": 1e-12}  # of float64
SPECIAL = ["<pad>", "<eos>", "<unk>"]
WORDS = [f"w{place}" for place in range(20)]
ROWS = [  # of several lengths, the chosen answer longer, shorter and as long
    {"prompt": "w0 w1 w2", "chosen": " w3 w4 w5 w6 w7", "rejected": " w8"},
    {"prompt": "w9 w1", "chosen": " w4", "rejected": " w10 w11 w12 w3"},
    {"prompt": "w13 w14 w0 w2 w5", "chosen": " w15 w16", "rejected": " w17 w18"},
    {"prompt": "w19", "chosen": " w6 w8 w9", "rejected": " w2 w2 w1 w0 w3 w4"},
]
BETA = 0.3
QUIET = {
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "report_to": [],
    "per_device_train_batch_size": len(ROWS),
}


class ExactLogProbs:
    """What ChunkedLogProbFunction gives, in the type of its input and for autograd to differentiate."""

    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, bias: Any, targets: Tensor, *_: Any) -> tuple[Tensor, ...]:
        logits = hidden @ weight.T  # [N, V]
        logps = logits.log_softmax(-1)
        entropy = -(logps.exp() * logps).sum(-1)
        likely = (2 * logps).logsumexp(-1).detach()
        top = logits.argmax(-1) == targets
        return logps.gather(-1, targets[:, None])[:, 0], entropy, likely, logits.mean(-1).detach(), top


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", ExactLogProbs)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # ORPO casts to float32 before its odds
    torch.set_default_dtype(torch.float64)  # EXO makes a tensor of its label smoothing
    yield
    torch.set_default_dtype(torch.float32)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: the embedded tokenizer's 49152 would make every logit tensor a thousand times
    larger.
    """
    words = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_model(seed: int, kind: type = LlamaForCausalLM, **configure_trainer: Any) -> Any:
    """Weights large enough that policy and reference differ by nats."""
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    vocabulary = len(SPECIAL + WORDS)
    return kind(
        LlamaConfig(
            **shape,
            vocab_size=vocabulary,
            pad_token_id=0,
            eos_token_id=1,
            initializer_range=0.4,
            **configure_trainer,
        )
    ).double()


@dataclass
class Bench:
    """A trainer of TRL's, two models and one batch."""

    trainer: Any
    policy: Any
    reference: Any
    batch: dict[str, Tensor]


def make_bench(
    trainer_type: type, config: Any, rows: list[dict[str, Any]], *, reference: bool = True
) -> Bench:
    policy, reference_model = tiny_model(0), tiny_model(1)
    models = (policy, reference_model) if reference else (policy,)
    trainer = trainer_type(
        *models, args=config, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer()
    )
    return Bench(trainer, policy, reference_model, next(iter(trainer.get_train_dataloader())))


@pytest.fixture(scope="module")
def dpo_bench(tmp_path_factory):
    return make_bench(DPOTrainer, DPOConfig(str(tmp_path_factory.mktemp("dpo")), beta=BETA, **QUIET), ROWS)


def token_logps(model: Any, ids: Tensor, attention: Tensor) -> Tensor:
    """log p of every token but the first: [N, T] -> [N, T-1]."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def pair(sums: Tensor, lengths: Tensor) -> PairLogprobs:
    """Chosen answers first, then the rejected ones: [2B], [2B]."""
    return PairLogprobs(*sums.chunk(2), *lengths.chunk(2))


def completion_logps(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Token log-probabilities [2B, T-1] and the mask of completions."""
    return token_logps(model, batch["input_ids"], batch["attention_mask"]), batch["completion_mask"][
        :, 1:
    ].bool()


def policy_and_reference(make_bench: Bench) -> tuple[PairLogprobs, PairLogprobs]:
    """Policy, with its graph, and reference."""
    logps, mask = completion_logps(make_bench.policy, make_bench.batch)
    with torch.no_grad():
        reference, _ = completion_logps(make_bench.reference, make_bench.batch)
    return pair((logps * mask).sum(1), mask.sum(1)), pair((reference * mask).sum(1), mask.sum(1))


def assert_same(ours: Tensor, theirs: Tensor, model: Any, **tolerance: float) -> None:
    """Two losses and their gradients with respect to every parameter of the model."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (ours, theirs)]
    torch.testing.assert_close(ours, theirs, **(tolerance or EXACT))
    assert any(gradient is not None and gradient.abs().max() > 1e-6 for gradient in gradients[1])
    for ours_gradient, theirs_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(ours_gradient, theirs_gradient, **(tolerance or EXACT))


def configure_trainer(
    trainer: Any, kind: str | list[str], weights: list[float] | None = None, **attributes: Any
) -> None:
    """Let a DPOTrainer compute these losses: all else as it is by default."""
    kinds = [kind] if isinstance(kind, str) else kind
    plain = {
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "ld_alpha": None,
    }
    plain |= {
        "use_weighting": False,
        "beta": BETA,
        "loss_types": kinds,
        "loss_weights": weights or [1.0] * len(kinds),
    }
    for name, value in (plain | attributes).items():
        setattr(trainer, name, value)


DPO_LIKE: dict[
    str, tuple[str, dict[str, Any], Callable[..., PairLoss]]
] = {  # their name, their settings, ours
    "dpo": ("sigmoid", {}, objectives.dpo),
    "ld_dpo": ("sigmoid", {}, objectives.ld_dpo),  # with nothing desensitised
    "robust_dpo": ("robust", {"label_smoothing": 0.1}, objectives.robust_dpo),
    "robust_dpo 0.3": (
        "robust",
        {"label_smoothing": 0.3},
        partial(objectives.robust_dpo, label_smoothing=0.3),
    ),
    "ipo": ("ipo", {}, objectives.ipo),
    "hinge": ("hinge", {}, objectives.hinge),
    "exo": ("exo_pair", {"label_smoothing": 1e-3}, objectives.exo),
    "exo 0.25": ("exo_pair", {"label_smoothing": 0.25}, partial(objectives.exo, label_smoothing=0.25)),
    "nca": ("nca_pair", {}, objectives.nca),
    "sppo": ("sppo_hard", {}, objectives.sppo),
    "aot": ("aot", {}, objectives.aot),
    "aot 0.2": ("aot", {"label_smoothing": 0.2}, partial(objectives.aot, label_smoothing=0.2)),
    "apo_zero": ("apo_zero", {}, objectives.apo_zero),
    "apo_down": ("apo_down", {}, objectives.apo_down),
    "bco_pair": ("bco_pair", {}, objectives.bco_pair),
    "discopop": ("discopop", {}, objectives.discopop),  # tau 0.05 on both sides
    "dpo_norm": ("sigmoid_norm", {}, objectives.dpo_norm),
}


@pytest.mark.parametrize("name", DPO_LIKE)
def test_an_objective_with_a_reference_is_trls(name, dpo_bench):
    kind, attributes, ours = DPO_LIKE[name]
    configure_trainer(dpo_bench.trainer, kind, **attributes)
    theirs = dpo_bench.trainer._compute_loss(dpo_bench.policy, dict(dpo_bench.batch), False)
    pair_loss = ours(*policy_and_reference(dpo_bench), beta=BETA)
    assert_same(pair_loss.losses.mean(), theirs, dpo_bench.policy)


def test_rewards_are_trls(dpo_bench):
    """Beta times the sum of log-ratios, also where the objective compares means per token."""
    policy, reference = policy_and_reference(dpo_bench)
    configure_trainer(dpo_bench.trainer, "sigmoid")
    dpo_bench.trainer._compute_loss(dpo_bench.policy, dict(dpo_bench.batch), False)
    theirs = dpo_bench.trainer._metrics["train"]
    for name in (schema.name for schema in MIXABLE):
        pair_loss = getattr(objectives, name)(policy, reference, beta=BETA)
        assert pair_loss.chosen_rewards.mean().item() == pytest.approx(theirs["rewards/chosen"][-1], rel=1e-9)
        assert pair_loss.rejected_rewards.mean().item() == pytest.approx(
            theirs["rewards/rejected"][-1], rel=1e-9
        )


DIVERGENCES = {  # theirs, and ours
    "forward_kl": ({"f_divergence_type": "forward_kl"}, {"divergence": Divergence.forward_kl}),
    "js": ({"f_divergence_type": "js_divergence"}, {"divergence": Divergence.js}),
}
WITH_DIVERGENCES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"}
DIVERGENT = [name for name, (kind, _, _) in DPO_LIKE.items() if kind in WITH_DIVERGENCES]


@pytest.mark.parametrize(("name", "divergence"), [*itertools.product(DIVERGENT, DIVERGENCES)])
def test_an_objective_under_another_divergence_is_trls(name, divergence, dpo_bench):
    kind, attributes, ours = DPO_LIKE[name]
    theirs, options = DIVERGENCES[divergence]
    configure_trainer(dpo_bench.trainer, kind, **attributes, **theirs)
    expected = dpo_bench.trainer._compute_loss(dpo_bench.policy, dict(dpo_bench.batch), False)
    assert_same(
        ours(*policy_and_reference(dpo_bench), beta=BETA, **options).losses.mean(), expected, dpo_bench.policy
    )


@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.9])
@pytest.mark.parametrize("name", DIVERGENT)
def test_the_alpha_divergence_is_trls_in_float32(name, alpha, dpo_bench, monkeypatch):
    """TRL bounds the exponent by a table that has no float64. Its coefficient is the power of the ratio plus
    1: 1 - alpha of the paper.
    """
    kind, attributes, ours = DPO_LIKE[name]
    monkeypatch.undo()
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", ExactLogProbs)
    torch.set_default_dtype(torch.float32)
    float32_bench = Bench(
        dpo_bench.trainer, dpo_bench.policy.float(), dpo_bench.reference.float(), dpo_bench.batch
    )
    try:
        configure_trainer(
            float32_bench.trainer,
            kind,
            **attributes,
            f_divergence_type="alpha_divergence",
            f_alpha_divergence_coef=1 - alpha,
        )
        expected = float32_bench.trainer._compute_loss(float32_bench.policy, dict(float32_bench.batch), False)
        options = {"divergence": Divergence.alpha, "divergence_alpha": alpha}
        loss = ours(*policy_and_reference(float32_bench), beta=BETA, **options).losses.mean()
        assert_same(loss, expected, float32_bench.policy, rtol=2e-4, atol=2e-5)
    finally:
        dpo_bench.policy.double(), dpo_bench.reference.double()  # every float32 is a float64


def test_the_mixture_is_trls(dpo_bench):
    """MPO as the paper has it: 0.8 DPO, 0.2 BCO, 1.0 NLL."""
    configure_trainer(dpo_bench.trainer, ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])
    theirs = dpo_bench.trainer._compute_loss(dpo_bench.policy, dict(dpo_bench.batch), False)
    policy, reference = policy_and_reference(dpo_bench)
    pair_loss = objectives.mpo(
        policy, reference, beta=BETA, objectives={"dpo": 0.8, "ipo": 0.0, "bco_pair": 0.2}
    )
    nll = -policy.chosen.sum() / policy.chosen_lengths.sum()
    assert_same(pair_loss.losses.mean() + 1.0 * nll, theirs, dpo_bench.policy)


@pytest.mark.parametrize("name", [name for name in DPO_LIKE if not name.startswith("aot")])
def test_wpos_weights_are_trls(name, dpo_bench):
    """The mean over tokens of log p(token) - log sum_v p(v)^2 comes from plain logits; the weights have no
    gradient.

    TRL 1.16 weighs in place, which autograd refuses after a hinge: of that, only the value is compared.
    """
    kind, attributes, ours = DPO_LIKE[name]
    configure_trainer(dpo_bench.trainer, kind, use_weighting=True, **attributes)
    theirs = dpo_bench.trainer._compute_loss(dpo_bench.policy, dict(dpo_bench.batch), False)
    logps, mask = completion_logps(dpo_bench.policy, dpo_bench.batch)
    logits = dpo_bench.policy(
        input_ids=dpo_bench.batch["input_ids"], attention_mask=dpo_bench.batch["attention_mask"]
    ).logits[:, :-1]
    aligned = logps - (2 * logits.log_softmax(-1)).logsumexp(-1)
    means = (aligned * mask).sum(1) / mask.sum(1)
    weights = losses.wpo_weights(*means.chunk(2))
    assert not weights.requires_grad
    loss = (weights * ours(*policy_and_reference(dpo_bench), beta=BETA).losses).mean()
    if name == "hinge":
        torch.testing.assert_close(loss, theirs, **EXACT)
    else:
        assert_same(loss, theirs, dpo_bench.policy)


def length_damped(model: Any, batch: dict[str, Tensor], alpha: float) -> PairLogprobs:
    """The sums as the lab makes them: from one flat list of completion tokens."""
    logps, mask = completion_logps(model, batch)
    lengths = mask.sum(1)
    shared_lengths = torch.minimum(*lengths.chunk(2)).repeat(2)
    sequence_ids, positions = mask.nonzero()[:, 0], mask.cumsum(1)[mask] - 1
    return pair(
        losses.length_damped_sum(
            logps[mask], sequence_ids, positions, shared_lengths, len(mask), alpha=alpha
        ),
        lengths,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_length_desensitised_dpo_is_trls(alpha, dpo_bench):
    configure_trainer(dpo_bench.trainer, "sigmoid", ld_alpha=alpha)
    theirs = dpo_bench.trainer._compute_loss(dpo_bench.policy, dict(dpo_bench.batch), False)
    with torch.no_grad():
        reference = length_damped(dpo_bench.reference, dpo_bench.batch, alpha)
    pair_loss = objectives.ld_dpo(
        length_damped(dpo_bench.policy, dpo_bench.batch, alpha), reference, beta=BETA
    )
    assert_same(pair_loss.losses.mean(), theirs, dpo_bench.policy)


# ---- single answers


@pytest.fixture(scope="module")
def kto_bench(tmp_path_factory):
    rows = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in ROWS
        for name in ("chosen", "rejected")
    ]
    config = KTOConfig(
        str(tmp_path_factory.mktemp("kto")), beta=BETA, **QUIET | {"per_device_train_batch_size": 7}
    )
    return make_bench(KTOTrainer, config, rows)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.7, 0.6)])
def test_kto_is_trls(kto_bench, weights, turned):
    """Seven answers, four of them desirable. With the models turned round the log-ratios change sign, so that
    one of the two is clamped.
    """
    trainer, batch = kto_bench.trainer, kto_bench.batch
    policy, reference = (kto_bench.policy, kto_bench.reference)[:: -1 if turned else 1]
    trainer.ref_model, trainer.desirable_weight, trainer.undesirable_weight = reference, *weights
    theirs = trainer._compute_loss(policy, dict(batch), False)

    def sums(model: Any, prefix: str = "") -> Tensor:
        mask = batch[f"{prefix}completion_mask"][:, 1:]
        return (token_logps(model, batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]) * mask).sum(
            1
        )

    with torch.no_grad():
        kl = losses.kto_kl(sums(policy, "KL_"), sums(reference, "KL_"))
        reference_sums = sums(reference)
    assert kl.item() == pytest.approx(trainer._metrics["train"]["kl"][-1], rel=1e-9)
    desirable = batch["label"].bool()
    assert desirable.tolist() == [True, False] * 3 + [True]
    options = {"kl": kl, "beta": BETA, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    kto_loss = kto(sums(policy), reference_sums, desirable, **options)
    assert kto_loss.rewards[desirable].mean().item() == pytest.approx(
        trainer._metrics["train"]["rewards/chosen"][-1], rel=1e-9
    )
    assert_same(kto_loss.losses.mean(), theirs, policy)


def test_one_of_the_two_kto_batches_is_clamped(kto_bench):
    assert sorted(kl > 0 for kl in kto_bench.trainer._metrics["train"]["kl"][-4:]) == [
        False,
        False,
        True,
        True,
    ]


# ---- reward model


@pytest.fixture(scope="module")
def reward_bench(tmp_path_factory):
    model = tiny_model(0, LlamaForSequenceClassification, num_labels=1)
    config = RewardConfig(str(tmp_path_factory.mktemp("reward")), **QUIET)
    rows = [
        {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} for row in ROWS
    ]
    trainer = RewardTrainer(
        model, config, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer()
    )
    return Bench(trainer, model, None, next(iter(trainer.get_train_dataloader())))


@pytest.mark.parametrize("margin", [None, [0.0, 1.0, 2 / 3, 1 / 3]])
@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_the_reward_models_objective_is_trls(reward_bench, margin, centering):
    model, trainer = reward_bench.policy, reward_bench.trainer
    margins = torch.tensor(margin or 0.0, dtype=torch.float64)
    trainer.args.center_rewards_coefficient = centering or None
    theirs = trainer.compute_loss(
        model, dict(reward_bench.batch) | ({} if margin is None else {"margin": margins})
    )
    scores = model(**reward_bench.batch).logits[:, 0]
    assert_same(reward(*scores.chunk(2), margin=margins, centering=centering).losses.mean(), theirs, model)


# ---- without a reference


@pytest.fixture(scope="module")
def cpo_bench(tmp_path_factory):
    return make_bench(
        CPOTrainer, CPOConfig(str(tmp_path_factory.mktemp("cpo")), beta=BETA, **QUIET), ROWS, reference=False
    )


@pytest.fixture(scope="module")
def orpo_bench(tmp_path_factory):
    return make_bench(
        ORPOTrainer,
        ORPOConfig(str(tmp_path_factory.mktemp("orpo")), beta=BETA, **QUIET),
        ROWS,
        reference=False,
    )


def reference_free(make_bench: Bench) -> tuple[PairLogprobs, Tensor, Tensor]:
    """The policy's log-probabilities, and the NLL per token of the chosen answers without and with their
    prompts.
    """
    sides = []
    for kind in ("chosen", "rejected"):
        ids, attention, labels = (
            make_bench.batch[f"{kind}_{name}"] for name in ("input_ids", "attention_mask", "labels")
        )
        sides.append(
            (token_logps(make_bench.policy, ids, attention), labels[:, 1:] != -100, attention[:, 1:].bool())
        )
    sums, lengths = zip(
        *[((logps * answer).sum(1), answer.sum(1)) for logps, answer, _ in sides], strict=True
    )
    logps, answer, attended = sides[0]
    return PairLogprobs(*sums, *lengths), -logps[answer].mean(), -logps[attended].mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("sft_weight", [1.0, 0.5])
def test_cpo_is_trls(cpo_bench, smoothing, sft_weight):
    cpo_bench.trainer.loss_type, cpo_bench.trainer.label_smoothing, cpo_bench.trainer.cpo_alpha = (
        "sigmoid",
        smoothing,
        sft_weight,
    )
    theirs, _ = cpo_bench.trainer.get_batch_loss_metrics(cpo_bench.policy, cpo_bench.batch)
    policy, nll, _ = reference_free(cpo_bench)
    ours = objectives.cpo(policy, beta=BETA, label_smoothing=smoothing).losses.mean() + sft_weight * nll
    assert_same(ours, theirs, cpo_bench.policy)


@pytest.mark.parametrize(("beta", "gamma"), [(BETA, 0.5), (2.0, 1.0), (10.0, 0.0)])
def test_simpo_is_trls(cpo_bench, beta, gamma, monkeypatch):
    """TRL's CPO with loss_type=simpo and no NLL; gamma is its simpo_gamma as it stands."""
    trainer = cpo_bench.trainer
    for name, value in {
        "loss_type": "simpo",
        "label_smoothing": 0.0,
        "cpo_alpha": 0.0,
        "beta": beta,
        "simpo_gamma": gamma,
    }.items():
        monkeypatch.setattr(trainer, name, value, raising=False)
    theirs, metrics = trainer.get_batch_loss_metrics(cpo_bench.policy, cpo_bench.batch)
    pair_loss = objectives.simpo(reference_free(cpo_bench)[0], beta=beta, gamma=gamma)
    assert pair_loss.chosen_rewards.mean().item() == pytest.approx(metrics["rewards/chosen"], rel=1e-9)
    assert_same(pair_loss.losses.mean(), theirs, cpo_bench.policy)


@pytest.mark.parametrize("alpha", [0.25, 1.0, -0.5])
def test_alphapo_is_trls(cpo_bench, alpha, monkeypatch):
    """TRL's SimPO with an alpha."""
    trainer = cpo_bench.trainer
    options = {
        "loss_type": "simpo",
        "label_smoothing": 0.0,
        "cpo_alpha": 0.0,
        "beta": BETA,
        "simpo_gamma": 0.5,
    }
    for name, value in (options | {"alpha": alpha}).items():
        monkeypatch.setattr(trainer, name, value, raising=False)
    theirs, metrics = trainer.get_batch_loss_metrics(cpo_bench.policy, cpo_bench.batch)
    ours = objectives.alphapo(reference_free(cpo_bench)[0], beta=BETA, gamma=0.5, alpha=alpha)
    assert ours.chosen_rewards.mean().item() == pytest.approx(metrics["rewards/chosen"], rel=1e-9)
    assert_same(ours.losses.mean(), theirs, cpo_bench.policy)


def test_orpo_is_trls(orpo_bench):
    """Its NLL is over prompt and chosen answer."""
    theirs, metrics = orpo_bench.trainer.get_batch_loss_metrics(orpo_bench.policy, orpo_bench.batch)
    policy, _, nll = reference_free(orpo_bench)
    pair_loss = objectives.orpo(policy, beta=BETA)
    assert pair_loss.rejected_rewards.mean().item() == pytest.approx(metrics["rewards/rejected"], rel=1e-9)
    assert_same(pair_loss.losses.mean() + nll, theirs, orpo_bench.policy)
