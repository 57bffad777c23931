"""One optimizer step of every method: its layout, its budget of tokens and the cache of its reference change
no loss and no gradient.
"""

import pytest
import torch
from small_models import relative_difference
from small_runs import UPDATE_SCALE, ContextFactory, console_output, make_trainer, perturb, run_step

from alignment_lab.engine.layout import Engine
from alignment_lab.engine.logprobs import score_sequences
from alignment_lab.engine.packing import ScoredSequence, build_trees
from alignment_lab.methods import METHODS
from alignment_lab.training.batch import collate

TOLERANCE = 1e-9  # of float64, relative: what is asked for. What is found is 1e-14
ONE_PASS = Engine(True, 10**6)
OTHER_LAYOUTS = {
    "a tree at a time": Engine(True, 1),
    "some trees": Engine(True, 150),
    "padded": Engine(False, 10**6),
    "padded, in parts": Engine(False, 99),
}
VARIANTS = [
    *METHODS,
    "dpo method.wpo=true method.sft_weight=0.5",
    "dpo method.divergence=alpha method.label_smoothing=0.1",
    "ld_dpo method.alpha=0 method.wpo=true",
    "aot method.sft_weight=0.5 method.label_smoothing=0.2",
    "orpo method.prompt_loss=false",
    "simpo method.wpo=true",
    "reward method.centering=0.1",
    "kto method.desirable_weight=2",
]


@pytest.fixture(scope="module")
def contexts(composed, tokenizer, tmp_path_factory):
    return ContextFactory(composed, tokenizer, tmp_path_factory.mktemp("contexts"))


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_the_same_in_every_layout(variant, contexts):
    """Six rows, policy and reference nats apart: the global batch in one forward pass, against many, packed
    or padded.

    So a loss over the whole batch (AOT's sorted margins, KTO's reference point), a mean over tokens (SFT, NLL
    terms) and a shift (BCO) must be those of the batch and not of a pack. Metrics and held-out scores are
    held to the same.
    """
    method, *options = variant.split()
    context = contexts.create(method, *options)
    trainer = make_trainer(context, ONE_PASS)
    other_trainers = [make_trainer(context, engine) for engine in OTHER_LAYOUTS.values()]
    assert [row for other_trainer in other_trainers for row in other_trainer.train_rows] == list(
        trainer.train_rows
    ) * len(other_trainers)  # the reference too, asked once and then read
    for each in (trainer, *other_trainers):
        each.heldout.scores(initial=True)
    perturb(context.model)
    batch = collate(trainer.objective, trainer.train_rows)
    assert len(batch.passes) == 1
    assert (
        len(collate(other_trainers[0].objective, trainer.train_rows).passes)
        == len(
            build_trees(
                [sequence for row in trainer.train_rows for sequence in trainer.objective.score_inputs(row)]
            )
        )
        > 5
    )
    loss, gradients, metrics = run_step(trainer)
    heldout = trainer.heldout.scores()
    assert {name.removeprefix("eval_") for name in heldout} == set(context.spec.method.heldout_metrics)
    for name, score in heldout.items():
        of_the_batch = name in ("eval_kl", "eval_shift")
        assert of_the_batch or len(score.prompts) == len(score.values), "the prompt of every row is known"
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
    for other_trainer in other_trainers:
        other_loss, other_gradients, other_metrics = run_step(other_trainer)
        assert other_loss == pytest.approx(loss, rel=TOLERANCE)
        assert other_metrics == pytest.approx(metrics, rel=TOLERANCE)
        assert other_gradients.keys() == gradients.keys()
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for name, gradient in gradients.items():
            assert float((other_gradients[name] - gradient).abs().max()) <= TOLERANCE * largest, name
        scores = other_trainer.heldout.scores()
        assert scores.keys() == heldout.keys()
        for name, score in scores.items():
            assert score.mean == pytest.approx(heldout[name].mean, rel=TOLERANCE, abs=1e-12), name
            assert score.prompts == heldout[name].prompts, name
            if not context.spec.method.couples_rows:  # else no value belongs to a row
                values = heldout[name].values  # in the order of the rows, however they were packed
                assert score.values == pytest.approx(values, rel=TOLERANCE, abs=1e-12), name


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("method", ["sft", "cpt", "reward", "kto", "bco", "aot", "orpo"])
def test_the_order_of_rows_in_a_batch_changes_nothing(method, contexts):
    """Backwards, with the halves of a pair in their order."""
    context = contexts.create(method)
    trainer = make_trainer(context)
    perturb(context.model)
    units, _ = trainer.objective.groups(trainer.train_rows)
    forward_rows, reversed_rows = (
        [trainer.train_rows[row] for unit in order for row in unit] for order in (units, units[::-1])
    )
    # BCO remembers steps: each trainer has its own
    (loss, gradients, _), (reversed_loss, reversed_gradients, _) = (
        run_step(trainer, forward_rows),
        run_step(make_trainer(context), reversed_rows),
    )
    assert reversed_loss == pytest.approx(loss, rel=TOLERANCE)
    assert all(
        relative_difference(reversed_gradients[name], gradient) < TOLERANCE
        for name, gradient in gradients.items()
    )


@pytest.mark.usefixtures("in_float64")
def test_the_coupled_method_is_coupled(contexts):
    """AOT on rows one by one is DPO; on the batch it is another loss. So the test above proves something
    about it.
    """
    losses = {}
    for method in ("aot", "dpo"):
        context = contexts.create(method)
        trainer = make_trainer(context)
        # so far that the margins stand in another order than the reference's
        perturb(context.model, 0.2)
        losses[method] = [
            run_step(trainer)[0],
            sum(run_step(trainer, [row])[0] for row in trainer.train_rows) / len(trainer.train_rows),
        ]
    assert losses["aot"][1] == pytest.approx(losses["dpo"][0], rel=1e-9)
    assert losses["dpo"][0] == pytest.approx(losses["dpo"][1], rel=1e-9)
    assert abs(losses["aot"][0] - losses["dpo"][0]) > 1e-4


@pytest.mark.usefixtures("in_float64")
def test_ktos_reference_point_is_the_global_batchs(contexts):
    """It is above 0 here, the same for every pack, and that of `aside`'s sequences by hand. A reference of
    noisier weights sees to that.
    """
    noisy = contexts.policy(contexts.spec("kto"))
    perturb(noisy, 0.05)
    context = contexts.create("kto", policy=noisy)
    trainer = make_trainer(context, Engine(True, 1))
    perturb(context.model, -0.05)
    batch = collate(trainer.objective, trainer.train_rows)
    stats = trainer.objective.aux_stats(batch)
    sequences = [ScoredSequence(row["prompt_ids"], row["KL_completion_ids"]) for row in trainer.train_rows]
    logps = [
        float(token_logps.sum())
        for token_logps in score_sequences(context.model, sequences, ONE_PASS, torch.float64, iter)
    ]
    by_hand = sum(
        policy_logp - row["ref_KL_logps"] for policy_logp, row in zip(logps, trainer.train_rows, strict=True)
    ) / len(sequences)
    assert by_hand > 0.1
    assert stats["kl"].item() == pytest.approx(by_hand, rel=1e-6)
    assert run_step(trainer)[2]["kl"] == pytest.approx(by_hand, rel=1e-6)


PREFERENCE_METHODS = [name for name in METHODS if name not in ("sft", "cpt", "reward")]
WITH_NLL = ["dpo method.sft_weight=0.5", "ld_dpo method.sft_weight=0.5"]


@pytest.mark.parametrize("variant", [*PREFERENCE_METHODS, *WITH_NLL])
def test_before_training_held_out_rows_need_no_second_look(variant, contexts):
    """The initial policy is the reference: what was stored of it gives the scores that the model itself
    would.
    """
    method, *options = variant.split()
    rows = contexts.rows(contexts.spec(method))
    if "chosen_ids" in rows[0]:  # the longer answer on either side
        rows = [
            {
                **row,
                **(
                    {"chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}
                    if index % 2
                    else {}
                ),
            }
            for index, row in enumerate(rows)
        ]
    context = contexts.create(method, *options, rows=rows)
    trainer = make_trainer(context)
    cached_scores, scores = trainer.heldout.scores(initial=True), trainer.heldout.scores()
    assert scores.keys() - cached_scores.keys() <= {"eval_kl"}  # it is 0 before training
    assert not cached_scores.keys() - scores.keys()
    accuracies = {"eval_rewards/accuracies", "eval_implicit_rewards/accuracies"}
    for name in cached_scores.keys() - accuracies:  # ties, which a rounding breaks
        assert sorted(cached_scores[name].values) == pytest.approx(
            sorted(scores[name].values), rel=1e-4, abs=1e-3
        ), name
    assert set(cached_scores["eval_implicit_rewards/margins"].values) == {0.0}
    assert set(cached_scores["eval_implicit_rewards/accuracies"].values) == {0.5}  # as guessing has


@pytest.mark.parametrize(
    "variant", [*PREFERENCE_METHODS, "dpo method.wpo=true", "orpo method.prompt_loss=false", "sft"]
)
def test_equal_policies_score_alike_whatever_the_method(variant, contexts, by_hand):
    """Policies that differ by a ten-thousandth of what training did, each with another method, beta and
    reward: the implicit rewards of each pair are those of the first, and so is the ranking.
    """
    method, *options = variant.split()
    context = contexts.create(method, *options)
    if method == "sft":  # on pairs: it trains on the chosen answers
        context.heldout_pairs = contexts.create("cpo").heldout_rows
    trainer = make_trainer(context)
    trainer.heldout.scores(initial=True)
    perturb(context.model)
    perturb(context.model, by=1e-4 * UPDATE_SCALE, seed=len(variant))
    scores = trainer.heldout.scores()
    accuracies = [float(margin > 0) for margin in by_hand]
    assert 0 < sum(accuracies) < len(accuracies)
    assert scores["eval_implicit_rewards/margins"].values == pytest.approx(by_hand, abs=0.01)
    assert scores["eval_implicit_rewards/accuracies"].values == accuracies
    assert scores["eval_implicit_rewards/accuracies"].share


@pytest.fixture(scope="module")
def by_hand(contexts):
    """(log pi(y_w) - log pi_0(y_w)) - (log pi(y_l) - log pi_0(y_l)) of each held-out pair, in their order."""
    context = contexts.create("cpo")
    pairs = [
        ScoredSequence(row["prompt_ids"], row[f"{answer}_ids"])
        for row in context.heldout_rows
        for answer in ("chosen", "rejected")
    ]

    def sums() -> list[float]:
        scored = score_sequences(context.model, pairs, Engine(False, 10**6), torch.float64, iter)
        return [float(logps.sum()) for logps in scored]

    before = sums()
    perturb(context.model)
    gains = [after - start for after, start in zip(sums(), before, strict=True)]
    margins = [chosen - rejected for chosen, rejected in zip(gains[::2], gains[1::2], strict=True)]
    assert min(map(abs, margins)) > 0.02  # no pair that a ten-thousandth turns
    return margins


@pytest.mark.usefixtures("in_float64")
def test_a_document_in_a_block_is_alone(contexts):
    """Continued pre-training: the loss and gradients of blocks are those of their documents by themselves,
    each token once.
    """
    context = contexts.create("cpt")
    trainer = make_trainer(context)
    assert any(len(row["seq_lengths"]) > 1 for row in trainer.train_rows)
    documents = []
    for row in trainer.train_rows:
        start = 0
        for length in row["seq_lengths"]:
            documents.append({"input_ids": row["input_ids"][start : start + length], "seq_lengths": [length]})
            start += length
    (loss, gradients, metrics), (documents_loss, documents_gradients, documents_metrics) = (
        run_step(trainer),
        run_step(trainer, documents),
    )
    assert documents_loss == pytest.approx(loss, rel=TOLERANCE)
    assert documents_metrics == pytest.approx(metrics, rel=TOLERANCE)
    assert all(
        relative_difference(documents_gradients[name], gradient) < TOLERANCE
        for name, gradient in gradients.items()
    )
    ids = [torch.tensor([row["input_ids"]]) for row in documents]
    by_hand = sum(
        -context.model(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None]).sum()
        for tokens in ids
    )
    assert loss == pytest.approx(by_hand.item() / sum(tokens.shape[1] - 1 for tokens in ids), rel=TOLERANCE)


@pytest.mark.parametrize("engine", [ONE_PASS, Engine(False, 10**6)], ids=["packed", "padded"])
def test_a_step_counts_its_tokens(engine, contexts):
    """6 N T: N parameters without the embedding, T tokens of the forward passes."""
    context = contexts.create("dpo")
    trainer = make_trainer(context, engine)
    batch = collate(trainer.objective, trainer.train_rows)
    parameters = sum(p.numel() for name, p in context.model.named_parameters() if "embed_tokens" not in name)
    tokens = sum(forward_batch.input_ids.numel() for forward_batch in batch.passes)
    assert trainer.floating_point_ops(batch) == 6 * parameters * tokens


def test_a_run_says_how_rows_are_laid_out(contexts):
    assert (
        "engine: packed, prompts shared; 77 tokens a pass; float32, no gradient checkpointing"
        in console_output(contexts.create("dpo", "training.micro_tokens=77"))
    )
    output = console_output(
        contexts.create("dpo", "model.attention=sdpa", "training.gradient_checkpointing=true")
    )
    assert "engine: padded: model.attention=sdpa; " in output and output.endswith(
        "float32, gradient checkpointing\n"
    )


def test_the_loader_gives_global_batches(contexts):
    """One item is one step's rows, in the seed's order: with workers too, as collating chooses nothing."""
    context = contexts.create("dpo", "training.global_batch=4")
    trainer = make_trainer(context, Engine(True, 100))
    epoch = [
        [forward_batch.input_ids.tolist() for forward_batch in batch.passes] for batch in trainer.dataloader()
    ]
    assert len(epoch) == 2
    rows = [[trainer.train_rows[index] for index in indices] for indices in trainer.sampler]
    assert [len(batch_rows) for batch_rows in rows] == [4, 2]
    by_hand = [collate(trainer.objective, batch_rows) for batch_rows in rows]
    assert epoch == [
        [forward_batch.input_ids.tolist() for forward_batch in batch.passes] for batch in by_hand
    ]
    trainer.sampler.set_epoch(1)
    assert [
        [forward_batch.input_ids.tolist() for forward_batch in batch.passes] for batch in trainer.dataloader()
    ] != epoch
