"""A step of the lab's trainers against TRL's own, on the ids that TRL made: loss, gradients and metrics,
packed and padded, in float64.

The objectives by themselves are held to TRL in test_losses_trl.py, whose small models, rows and patches of
TRL's fused head serve here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from small_runs import ContextFactory, make_trainer, run_step
from test_losses_trl import (
    BETA,
    QUIET,
    ROWS,
    configure_trainer,
    dpo_bench,
    in_float64,
    kto_bench,
    make_bench,
    orpo_bench,
    reward_bench,
    tiny_model,
    tiny_tokenizer,
)
from trl import SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from alignment_lab.data import count_sequence_tokens
from alignment_lab.engine.layout import Engine
from alignment_lab.models import packed_attention

__all__ = ["dpo_bench", "in_float64", "kto_bench", "orpo_bench", "reward_bench"]  # fixtures
EXACT = 1e-9
SIMPO = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.0}
LAYOUTS = [Engine(True, 10**6), Engine(True, 1), Engine(False, 10**6)]


@pytest.fixture(scope="module")
def contexts(composed, tmp_path_factory):
    return ContextFactory(composed, tiny_tokenizer(), tmp_path_factory.mktemp("contexts"))


@pytest.fixture(autouse=True)
def norms_in_float64(in_float64, monkeypatch):
    """The models' norms ask for float32 by name."""
    monkeypatch.setattr(torch, "float32", torch.float64)


def copy_model(model: Any) -> Any:
    """Another model with the same weights."""
    copy = type(model)(model.config).double()
    copy.load_state_dict(model.state_dict())
    return copy


def run_steps(
    contexts: ContextFactory,
    model: Any,
    rows: list[dict[str, Any]],
    method: str,
    *overrides: str,
    policy: Any = None,
) -> list[Any]:
    """Loss, gradients and metrics of one step in each layout; of a method with a reference, `model` is that,
    and `policy` the policy.
    """
    packed_attention.register()
    model.set_attn_implementation(packed_attention.SHARED_PREFIX)
    # half of them are held out
    context = contexts.create(method, *overrides, rows=[*rows, *rows], policy=model)
    trainers = [make_trainer(context, engine) for engine in LAYOUTS]
    if policy is not None:
        model.load_state_dict(policy.state_dict())
    return [run_step(trainer) for trainer in trainers]


def assert_equals_trl(steps: list[Any], theirs: torch.Tensor, model: Any, tolerance: float = EXACT) -> None:
    """Each layout's loss and gradients are TRL's."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    gradients_list = torch.autograd.grad(
        theirs, [dict(model.named_parameters())[name] for name in names], allow_unused=True
    )
    expected = {
        name: gradient for name, gradient in zip(names, gradients_list, strict=True) if gradient is not None
    }
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-4
    for loss, gradients, _ in steps:
        assert loss == pytest.approx(theirs.item(), rel=tolerance)
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            assert float((gradients[name] - gradient).abs().max()) <= tolerance * largest, name


def pairs(batch: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """The rows of a batch with a completion mask, chosen answers first."""
    sides = []
    for ids, attention, answer in zip(
        batch["input_ids"], batch["attention_mask"].bool(), batch["completion_mask"].bool(), strict=True
    ):
        sides.append((ids[attention & ~answer].tolist(), ids[answer].tolist()))
    half = len(sides) // 2
    rows = []
    for (prompt, chosen), (rejected_prompt, rejected) in zip(sides[:half], sides[half:], strict=True):
        assert prompt == rejected_prompt
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return rows


LOGGED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
LOGPS = ("logps/chosen", "logps/rejected")
AS_TRL = {  # a method with its options, and what configures TRL's trainer so
    "dpo": {"loss_type": "sigmoid"},
    "ipo": {"loss_type": "ipo"},
    "dpo_norm": {"loss_type": "sigmoid_norm"},
    "dpo method.divergence=js": {"loss_type": "sigmoid", "f_divergence_type": "js_divergence"},
    "ld_dpo method.alpha=0.3": {"loss_type": "sigmoid", "ld_alpha": 0.3},
}


@pytest.mark.parametrize("variant", AS_TRL)
def test_dpos_step_is_trls(variant, contexts, dpo_bench):
    """The reference comes out of the store, where it is float32: good to a ten-millionth."""
    trl, (method, *options) = dpo_bench.trainer, variant.split()
    settings = dict(AS_TRL[variant])
    configure_trainer(trl, settings.pop("loss_type"), **settings)
    seen = trl._total_train_tokens
    theirs = trl.compute_loss(dpo_bench.policy, dict(dpo_bench.batch))
    rows = pairs(dpo_bench.batch)
    assert sum(map(count_sequence_tokens, rows)) == trl._total_train_tokens - seen  # num_tokens
    steps = run_steps(
        contexts,
        copy_model(dpo_bench.reference),
        rows,
        method,
        f"method.beta={BETA}",
        *options,
        policy=dpo_bench.policy,
    )
    assert_equals_trl(steps, theirs, dpo_bench.policy, 1e-6)
    logged = {name: values[-1] for name, values in trl._metrics["train"].items()}
    assert_same_metrics(steps, logged, *LOGGED, *LOGPS, tolerance=1e-5)


def assert_same_metrics(
    steps: list[Any], logged: dict[str, float], *names: str, tolerance: float = EXACT
) -> None:
    """Each layout's metrics are those that TRL logged."""
    for _, _, metrics in steps:
        for name in names:
            assert metrics[name] == pytest.approx(float(logged[name]), rel=tolerance), name


def test_orpos_step_is_trls_with_the_nll_of_prompt_and_answer(contexts, orpo_bench):
    trl = orpo_bench.trainer
    theirs, metrics = trl.get_batch_loss_metrics(orpo_bench.policy, orpo_bench.batch)
    steps = run_steps(
        contexts,
        copy_model(orpo_bench.policy),
        reference_free_pairs(orpo_bench.batch),
        "orpo",
        f"method.beta={BETA}",
        "method.prompt_loss=true",
    )
    assert_equals_trl(steps, theirs, orpo_bench.policy)
    assert_same_metrics(steps, metrics, *LOGGED, *LOGPS, "nll_loss")


def reference_free_pairs(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a batch of TRL's reference-free trainers."""
    rows = []
    for index in range(len(batch["chosen_input_ids"])):
        row = {}
        for side in ("chosen", "rejected"):
            ids, attention, labels = (
                batch[f"{side}_{name}"][index] for name in ("input_ids", "attention_mask", "labels")
            )
            answer = labels != -100
            row |= {
                "prompt_ids": ids[attention.bool() & ~answer].tolist(),
                f"{side}_ids": ids[answer].tolist(),
            }
        rows.append(row)
    return rows


@pytest.mark.parametrize("method", ["cpo", "simpo", "alphapo"])
def test_cpos_step_is_trls(method, contexts, tmp_path):
    """TRL's CPO has SimPO and AlphaPO in it, on means over tokens, as are their `logps`."""
    settings = {"cpo": {}, "simpo": SIMPO, "alphapo": SIMPO | {"alpha": 0.25}}[method]
    config = CPOConfig(str(tmp_path), beta=BETA, **settings, **QUIET)
    cpo_bench = make_bench(CPOTrainer, config, ROWS, reference=False)
    theirs, metrics = cpo_bench.trainer.get_batch_loss_metrics(cpo_bench.policy, cpo_bench.batch)
    rows = reference_free_pairs(cpo_bench.batch)
    steps = run_steps(contexts, copy_model(cpo_bench.policy), rows, method, f"method.beta={BETA}")
    assert_equals_trl(steps, theirs, cpo_bench.policy)
    assert_same_metrics(steps, metrics, *LOGGED, *LOGPS)


def test_ktos_metrics_are_trls(contexts, kto_bench):
    """Rewards and log-probabilities by label; its reference point has other answers than TRL's, and no part
    in them.
    """
    trl, batch = kto_bench.trainer, kto_bench.batch
    seen = trl._total_train_tokens
    trl._compute_loss(kto_bench.policy, dict(batch), False)
    rows = []
    for ids, attention, answer, label in zip(
        batch["input_ids"],
        batch["attention_mask"].bool(),
        batch["completion_mask"].bool(),
        batch["label"],
        strict=True,
    ):
        row = {"prompt_ids": ids[attention & ~answer].tolist(), "completion_ids": ids[answer].tolist()}
        rows.append({**row, "prompt": row["prompt_ids"], "label": bool(label)})
    assert sum(map(count_sequence_tokens, rows)) == trl._total_train_tokens - seen
    reference = copy_model(kto_bench.reference)
    steps = run_steps(contexts, reference, rows, "kto", f"method.beta={BETA}", policy=kto_bench.policy)
    logged = {name: values[-1] for name, values in trl._metrics["train"].items()}
    assert_same_metrics(steps, logged, *LOGGED[:2], *LOGPS, tolerance=1e-5)
    assert "rewards/accuracies" not in logged and logged["rewards/margins"] == pytest.approx(
        logged["rewards/chosen"] - logged["rewards/rejected"]
    )


@pytest.mark.parametrize("centering", [0.0, 0.01])
@pytest.mark.parametrize("margins", [None, [0.0, 1.0, 0.5, 0.25]])
def test_the_reward_models_step_is_trls(contexts, reward_bench, centering, margins):
    """TRL's ids hold prompt and answer in one: where the seam lies makes no difference to a score."""
    trl, batch = reward_bench.trainer, reward_bench.batch
    trl.args.center_rewards_coefficient = centering or None
    margin_column = {} if margins is None else {"margin": torch.tensor(margins)}
    theirs = trl.compute_loss(reward_bench.policy, dict(batch) | margin_column)
    ids = [
        row_ids[attention.bool()].tolist()
        for row_ids, attention in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    both = zip(ids[: len(ROWS)], ids[len(ROWS) :], strict=True)
    rows = [
        {"prompt_ids": chosen[:1], "chosen_ids": chosen[1:], "rejected_ids": rejected[1:]}
        for chosen, rejected in both
    ]
    if margins is not None:
        rows = [{**row, "margin": margin} for row, margin in zip(rows, margins, strict=True)]
    steps = run_steps(
        contexts, copy_model(reward_bench.policy), rows, "reward", f"method.centering={centering}"
    )
    assert_equals_trl(steps, theirs, reward_bench.policy)
    for _, _, metrics in steps:
        assert metrics["margin"] == pytest.approx(trl._metrics["train"]["margin"][-1], rel=EXACT)
        assert metrics["mean_reward"] == pytest.approx(trl._metrics["train"]["mean_reward"][-1], rel=EXACT)
        assert metrics["accuracy"] == pytest.approx(trl._metrics["train"]["accuracy"][-1], rel=EXACT)


def test_sfts_step_is_trls_over_accumulated_batches(contexts, tmp_path):
    """Two micro-batches of TRL's, divided by the tokens of both (`num_items_in_batch`), are one global batch
    of ours.
    """
    model = tiny_model(0)
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
    config = SFTConfig(str(tmp_path), **QUIET | {"per_device_train_batch_size": 2})
    trl = SFTTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer())
    batches = list(trl.get_train_dataloader())
    count = sum((batch["labels"] != -100).sum() for batch in batches)
    theirs = sum(trl.compute_loss(model, dict(batch), num_items_in_batch=count) for batch in batches)
    token_rows = []
    for batch in batches:
        for ids, labels, attention in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True
        ):
            token_rows.append({"input_ids": ids[attention].tolist(), "labels": labels[attention].tolist()})
    assert sum(map(count_sequence_tokens, token_rows)) == trl._total_train_tokens
    steps = run_steps(contexts, copy_model(model), token_rows, "sft")
    assert_equals_trl(steps, theirs, model)
    accuracies = trl._metrics["train"]["mean_token_accuracy"]  # each of its micro-batch
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    whole = sum(share * size for share, size in zip(accuracies, counts, strict=True)) / sum(counts)
    assert_same_metrics(steps, {"mean_token_accuracy": whole}, "mean_token_accuracy")
