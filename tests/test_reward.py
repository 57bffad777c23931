"""A reward model: what it scores, and that what a run saves is what transformers loads."""

import pytest
import torch
from small_runs import ContextFactory, console_output, make_trainer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignment_lab import data
from alignment_lab.actions import run_action
from alignment_lab.data import tokenization
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.training.batch import collate

OVERRIDES = [
    "model=tiny",
    "method=reward",
    "parallel.device=cpu",
    "training.max_steps=3",
    "training.global_batch=4",
    "eval.rows=6",
]
OVERRIDES += ["training.learning_rate=1e-2", "model.shape.hidden=32"]


@pytest.fixture(scope="module")
def finished(composed, tmp_path_factory):
    run = RunDirectory(tmp_path_factory.mktemp("reward") / "run")
    run_action(composed(OVERRIDES), run)
    return run


def test_a_saved_reward_model_gives_the_scores_that_the_run_measured(finished, composed, tokenizer):
    """Held-out pairs through plain transformers, one by one: the report's means, to float32's last digits."""
    model = AutoModelForSequenceClassification.from_pretrained(finished.model).eval()
    rows = tokenization.tokenize_pairs(tokenizer, data.load_rows(composed(OVERRIDES)).heldout[:6], 1024).rows
    with torch.no_grad():
        scores = [
            [
                model(torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])).logits.item()
                for side in ("chosen", "rejected")
            ]
            for row in rows
        ]
    metrics = finished.report()["metrics"]
    assert metrics["eval_margin"]["after"]["value"] == pytest.approx(
        sum(chosen - rejected for chosen, rejected in scores) / 6, abs=1e-5
    )
    assert metrics["eval_mean_reward"]["after"]["value"] == pytest.approx(
        sum(chosen + rejected for chosen, rejected in scores) / 12, abs=1e-5
    )
    assert (
        metrics["eval_accuracy"]["after"]["value"]
        == sum(chosen > rejected for chosen, rejected in scores) / 6
    )
    # it did learn
    assert abs(metrics["eval_margin"]["after"]["value"] - metrics["eval_margin"]["before"]["value"]) > 1e-3


def test_padded_batches_of_a_saved_reward_model_score_as_rows_alone(finished, tokenizer):
    """What another program does with it: right padding by its own tokenizer."""
    model = AutoModelForSequenceClassification.from_pretrained(finished.model).eval()
    loaded = AutoTokenizer.from_pretrained(finished.model)
    loaded.padding_side = "right"
    chats = [
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So. " * n}] for n in (1, 9)
    ]
    ids = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in chats]
    batch = loaded.pad({"input_ids": ids}, return_tensors="pt")
    with torch.no_grad():
        together = model(**batch).logits[:, 0].tolist()
        one_by_one = [model(torch.tensor([row_ids])).logits.item() for row_ids in ids]
    assert together == pytest.approx(one_by_one, abs=1e-5)


def test_a_reward_model_has_one_output_and_answers_nobody(finished):
    model = AutoModelForSequenceClassification.from_pretrained(finished.model)
    assert model.config.num_labels == 1
    assert finished.samples() == []


def test_a_reward_model_is_packed(composed, tokenizer, tmp_path):
    context = ContextFactory(composed, tokenizer, tmp_path).create("reward")
    assert context.engine.packed
    assert len(collate(make_trainer(context).objective, context.train_rows).passes) == 1


@pytest.mark.parametrize("gaps", [0, 1, 12])
def test_a_row_without_a_margin_has_0_and_the_others_keep_theirs(gaps, composed, tokenizer, tmp_path):
    """The rule is a row's: neither a gap nor the rows of its batch change another row. Gaps are counted."""
    contexts = ContextFactory(composed, tokenizer, tmp_path)
    rows = [dict(row, margin=0.5) for row in contexts.rows(contexts.spec("reward"))]
    for row in rows[:gaps]:
        del row["margin"]
    context = contexts.create("reward", rows=rows)
    trainer = make_trainer(context)
    margins = trainer.objective.batch_columns(rows)["margin"].tolist()
    assert margins == [0.0] * gaps + [0.5] * (len(rows) - gaps)
    told = "margin: 1 of 12 rows have none; theirs is 0" in console_output(context)
    assert told == (gaps == 1)
