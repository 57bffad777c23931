"""Labelled single answers: which answers stand beside which prompts, both labels in every batch, KTO's
weights, BCO's memory.
"""

import math
import random
from collections import Counter
from dataclasses import replace

import numpy
import pytest
import torch
from small_runs import ContextFactory, console_output, make_trainer, perturb, run_step

from alignment_lab.actions import run_action
from alignment_lab.config import METHOD_SCHEMAS
from alignment_lab.data.table import Ragged
from alignment_lab.data.token_rows import TokenRows
from alignment_lab.methods import objective_class
from alignment_lab.methods.unpaired import with_mismatched_answers
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.training import Callback
from alignment_lab.training.batch import collate


def make_row(prompt, completion, label=True):
    messages = [{"role": "user", "content": str(prompt)}]
    return {"prompt": messages, "prompt_ids": prompt, "completion_ids": completion, "label": label}


def random_rows(seed: int, prompts: int = 9, rows: int = 40):
    """Rows of several answers to a prompt, some of them equal."""
    generator = random.Random(seed)
    prompts_drawn = [
        [generator.randrange(30) for _ in range(1 + generator.randrange(8))] for _ in range(prompts)
    ]
    answers = [[generator.randrange(30) for _ in range(1 + generator.randrange(12))] for _ in range(15)]
    return [
        make_row(generator.choice(prompts_drawn), generator.choice(answers), generator.random() < 0.5)
        for _ in range(rows)
    ]


@pytest.fixture(scope="module")
def contexts(composed, tokenizer, tmp_path_factory):
    return ContextFactory(composed, tokenizer, tmp_path_factory.mktemp("contexts"))


# ---- answers to other prompts


@pytest.mark.parametrize("seed", range(5))
def test_a_mismatched_answer_is_another_prompts(seed):
    """It was given to a prompt that is not the row's own, all of one prompt's to one other; what was there
    stays as it was.
    """
    rows = random_rows(seed)
    matched = with_mismatched_answers(rows, 1000)
    answers_by_prompt = {}
    for example in rows:
        answers_by_prompt.setdefault(tuple(example["prompt_ids"]), []).append(example["completion_ids"])
    for before, after in zip(rows, matched, strict=True):
        assert {**before, "KL_completion_ids": after["KL_completion_ids"]} == after
        sources = [
            prompt for prompt, answers in answers_by_prompt.items() if after["KL_completion_ids"] in answers
        ]
        assert set(sources) - {tuple(before["prompt_ids"])}


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_matches_nothing_anew(seed):
    """The same content in another order: every row has the answer that it had."""
    rows = random_rows(seed)
    shuffled = rows.copy()
    random.Random(1).shuffle(shuffled)

    def count_matches(rows):
        return Counter(
            (
                tuple(example["prompt_ids"]),
                tuple(example["completion_ids"]),
                tuple(example["KL_completion_ids"]),
            )
            for example in with_mismatched_answers(rows, 1000)
        )

    assert count_matches(rows) == count_matches(shuffled)


def test_a_mismatched_answer_is_cut_where_its_prompt_leaves_no_room():
    """7 tokens in all: behind a prompt of 5 there are two, behind one of 2 all three of the other's."""
    matched = with_mismatched_answers([make_row([1] * 5, [2, 3, 4]), make_row([5] * 2, [6, 7, 8])], 7)
    assert [example["KL_completion_ids"] for example in matched] == [[6, 7], [2, 3, 4]]


@pytest.mark.parametrize("seed", range(2))
def test_rows_that_are_made_anew_whenever_they_are_taken_are_the_same_rows(seed):
    """A table's rows: no two of them are one object, and none is the object that it was."""
    rows = random_rows(seed)
    ids = ("prompt_ids", "completion_ids")
    columns = {
        name: Ragged(
            numpy.array([token for row in rows for token in row[name]], "int32"),
            numpy.cumsum([len(row[name]) for row in rows]),
        )
        for name in ids
    }
    sources = [{name: value for name, value in row.items() if name not in ids} for row in rows]
    table = TokenRows(columns, sources, numpy.arange(len(rows)))
    assert table[0] is not table[0]
    assert with_mismatched_answers(table, 10) == with_mismatched_answers(rows, 10)
    objective = object.__new__(objective_class(METHOD_SCHEMAS["kto"]()))
    values = {
        name: torch.arange(len(objective.rows_of_metric(name, rows)))
        for name in ("rewards/chosen", "rewards/rejected", "logps")
    }
    assert objective.as_scores(values, table) == objective.as_scores(values, rows)
    assert all(scores.prompts for scores in objective.as_scores(values, table).values())


def test_one_prompt_has_no_other():
    rows = [make_row([1], [2]), make_row([1], [3], False)]
    assert with_mismatched_answers(rows, 100) == rows


def test_without_another_prompt_ktos_reference_point_is_0(contexts):
    """The loss of an answer as the reference has it is 1/2, whatever its label."""
    examples = [make_row([1, 2], [3, 4]), make_row([1, 2], [5], False)]
    trainer = make_trainer(contexts.create("kto", rows=[*examples, *examples]))
    loss, _, metrics = run_step(trainer)
    assert loss == pytest.approx(0.5, abs=1e-5)
    assert "kl" not in metrics


FEW_PROMPTS = [  # prompts to train on, and prompts that are held out
    (1, 0),
    (1, 1),
    (1, 3),
    (3, 1),
]


@pytest.mark.parametrize("method", ["kto", "bco"])
@pytest.mark.parametrize(("to_train_on", "held_out"), FEW_PROMPTS)
@pytest.mark.parametrize("labels", [(True, False), (True, True), (False, False)])
def test_a_prompt_alone_is_trained_on_and_measured(method, to_train_on, held_out, labels, contexts):
    """Training and held-out rows are matched apart: a set with one prompt has the reference point 0, and the
    other set keeps its own; a label that no row has leaves no number behind.
    """

    def rows(prompts: range) -> list:
        labeled = [(prompt, number, label) for prompt in prompts for number, label in enumerate(labels)]
        return [make_row([prompt + 1], [3 + number, 4], label) for prompt, number, label in labeled]

    context = contexts.create(method, "training.global_batch=1", rows=rows(range(3)))
    context = replace(context, train_rows=rows(range(to_train_on)), heldout_rows=rows(range(5, 5 + held_out)))
    trainer = make_trainer(context)
    measured = [trainer.heldout.scores(initial=initial) for initial in (True, False)]
    # at first the reference point is 0 without a look
    assert measured[0].keys() == measured[1].keys() - {"eval_kl"}
    numbers = [scores.estimate()["value"] for scores in measured[1].values() if scores.values]
    assert all(map(math.isfinite, numbers)) and bool(numbers) == bool(held_out)
    assert ("eval_kl" in measured[1]) == (method == "kto" and held_out > 1)
    for row in trainer.train_rows:
        loss, _, metrics = run_step(trainer, [row])
        assert math.isfinite(loss) and all(map(math.isfinite, metrics.values()))
        assert ("kl" in metrics) == (method == "kto" and to_train_on > 1)


# ---- labels


def unbalanced(contexts, good: int, bad: int):
    """Rows without a partner, made of the embedded ones."""
    rows = contexts.rows(contexts.spec("kto"))
    labeled = []
    for index in range(good + bad):
        example = rows[index % len(rows)]
        labeled.append({**example, "prompt_ids": [*example["prompt_ids"], index], "label": index < good})
    return [*labeled, *labeled]


def test_the_labels_and_their_weights_are_told(contexts):
    """Eq. 8 of KTO's paper: of 12 good and 4 bad, 12 w_d / 4 w_u must come to 4/3 at most, so w_u = 9/4.
    One's own weights go first.
    """
    context = contexts.create("kto", rows=unbalanced(contexts, 12, 4))
    trainer = make_trainer(context)
    assert "labels: 12 desirable, weight 1; 4 undesirable, weight 2.25" in console_output(context)
    assert trainer.objective.weights == (1.0, 2.25)
    context = contexts.create("kto", "method.undesirable_weight=3", rows=unbalanced(contexts, 12, 4))
    assert make_trainer(context).objective.weights == (1.0, 3.0)


@pytest.mark.parametrize("method", ["kto", "bco"])
def test_every_batch_has_its_share_of_both_labels(method, contexts):
    """12 good rows and 4 bad ones in batches of four: three and one each, in every epoch."""
    trainer = make_trainer(
        contexts.create(method, "training.global_batch=4", rows=unbalanced(contexts, 12, 4))
    )
    sampler = trainer.sampler
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert [sum(trainer.train_rows[index]["label"] for index in batch) for batch in sampler] == [3] * 4


@pytest.mark.parametrize("method", ["kto", "bco"])
def test_halves_of_a_pair_share_a_batch_and_a_prompt(method, contexts):
    context = contexts.create(method, "training.global_batch=4")
    trainer = make_trainer(context)
    for batch in trainer.sampler:
        rows = [trainer.train_rows[index] for index in batch]
        assert [example["label"] for example in rows] == [True, False] * (len(rows) // 2)
        assert all(
            good["prompt_ids"] == bad["prompt_ids"] for good, bad in zip(rows[::2], rows[1::2], strict=True)
        )


# ---- what is measured


@pytest.mark.parametrize("method", ["kto", "bco"])
def test_pairs_have_margins_and_single_answers_have_none(method, contexts):
    """The margin of a pair is the difference of its halves' rewards, and one above 0 is an accuracy."""
    context = contexts.create(method)
    trainer = make_trainer(context)
    perturb(context.model)
    scores = trainer.heldout.scores()
    good, bad = (torch.tensor(scores[f"eval_rewards/{name}"].values) for name in ("chosen", "rejected"))
    assert scores["eval_rewards/margins"].values == pytest.approx((good - bad).tolist())
    assert scores["eval_implicit_rewards/accuracies"].values == (good > bad).float().tolist()
    assert scores["eval_implicit_rewards/accuracies"].share
    unpaired_scores = make_trainer(contexts.create(method, rows=unbalanced(contexts, 5, 3))).heldout.scores()
    names = ("rewards/margins", "implicit_rewards/margins", "implicit_rewards/accuracies")
    assert not {f"eval_{name}" for name in names} & unpaired_scores.keys()
    assert len(unpaired_scores["eval_rewards/chosen"].values) == 5


def test_the_logged_margin_is_a_difference_of_means(contexts):
    """Answers are not paired: the margin of a step is the mean reward of its good ones less that of its bad
    ones.
    """
    context = contexts.create("kto")
    trainer = make_trainer(context)
    perturb(context.model)
    logged = []

    class KeepMetrics(Callback):
        def on_log(self, state, metrics):
            logged.append(metrics)

    trainer.callbacks.append(KeepMetrics())
    trainer.state.step = 1
    trainer.train_step(collate(trainer.objective, trainer.train_rows))
    trainer.log_step()
    (metrics,) = logged
    assert metrics["rewards/chosen"] != metrics["rewards/rejected"]
    assert metrics["rewards/margins"] == pytest.approx(
        metrics["rewards/chosen"] - metrics["rewards/rejected"]
    )


# ---- BCO's shift


@pytest.mark.usefixtures("in_float64")
def test_the_shift_is_the_mean_reward_of_all_steps_before(contexts):
    """0 in the first step, then the mean over the rows of both labels, whatever the packs; evaluation adds
    nothing.
    """
    context = contexts.create("bco", "training.micro_tokens=1")
    trainer = make_trainer(context)
    rewards = []
    for number in range(3):
        perturb(context.model, seed=number)
        expected = sum(rewards) / len(rewards) if rewards else 0.0
        _, _, metrics = run_step(trainer)
        assert metrics["shift"] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        half = len(trainer.train_rows) // 2
        rewards += [metrics["rewards/chosen"]] * half + [metrics["rewards/rejected"]] * half
        trainer.heldout.scores()
    assert trainer.objective.count == 3 * len(trainer.train_rows)


# ---- rows that never were pairs


@pytest.mark.parametrize("method", ["kto", "bco"])
def test_a_run_on_rows_that_never_were_pairs(method, composed, write_rows, tmp_path, capsys):
    """30 labelled answers, a third of them good, one to a prompt: they train, and no margin is made up."""
    rows = [
        {"prompt": f"Is {n} even?", "completion": "Yes." if n % 3 else "No.", "label": n % 3 == 0}
        for n in range(30)
    ]
    run = RunDirectory(tmp_path / "run")
    overrides = [
        "model=tiny",
        "parallel.device=cpu",
        "model.shape.hidden=16",
        "data=local",
        f"data.path={write_rows(rows)}",
    ]
    run_action(
        composed(
            [
                *overrides,
                f"method={method}",
                "training.global_batch=9",
                "eval.generations=1",
                "eval.max_new_tokens=2",
            ]
        ),
        run,
    )
    report = run.report()
    assert report["rows"]["train"] == 27 and report["steps"] == 3
    assert {"eval_rewards/chosen", "eval_implicit_rewards/rejected", "eval_loss"} <= report["metrics"].keys()
    assert "eval_implicit_rewards/accuracies" not in report["metrics"]
    steps = [make_row for make_row in run.metrics() if "rewards/chosen" in make_row]
    assert [make_row["rewards/margins"] for make_row in steps] == pytest.approx(
        [make_row["rewards/chosen"] - make_row["rewards/rejected"] for make_row in steps]
    )
    if method == "kto":
        assert "desirable, weight" in capsys.readouterr().out
