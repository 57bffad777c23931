"""What has no effect, of a schedule or of the settings, is told in a line; nothing where all of it has."""

from __future__ import annotations

import pytest
import torch
from small_runs import ContextFactory, console_output, make_trainer

from alignment_lab.config import Scheduler, Training, describe_adapter_rate, describe_no_effect
from alignment_lab.training.optimizer import create_scheduler
from alignment_lab.training.schedule_notes import describe_schedule

PEAK = 1e-2


def learning_rates(training: Training, steps: int) -> list[float]:
    """Of each step, by transformers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=training.learning_rate)
    scheduler, rates = create_scheduler(optimizer, training, steps), []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", Scheduler)
@pytest.mark.parametrize("warmup", [0, 0.1, 0.5, 0.99, 1, 2, 7, 100])
def test_the_steps_that_train_nothing_are_those_of_the_schedule(kind, warmup):
    """A tenth of the steps or more at a learning rate of 0, or a peak that is not reached: told, else not."""
    training = Training(learning_rate=PEAK, lr_scheduler_type=kind, warmup_steps=warmup)
    for steps in (1, 2, 3, 7, 8, 10, 11, 40):
        rates, note = learning_rates(training, steps), describe_schedule(training, steps)
        assert ("nothing is trained" in note) == (max(rates) == 0)
        # inverse_sqrt is at its peak where the warm-up ends, and polynomial ends at 1e-7
        assert ("never reaches" in note) == (0 < max(rates) < PEAK * (1 - 1e-9))
        assert bool(note) == (rates.count(0.0) >= 0.1 * steps or max(rates) < PEAK * (1 - 1e-9))
        assert "\n" not in note
        if "never reaches" in note:
            assert f"ends at {rates[-1]:.3g} " in note


INTERVALS = [
    ({}, ""),
    ({"logging_steps": 12, "save_steps": 12, "eval_steps": 11}, ""),
    ({"logging_steps": 13}, "training.logging_steps=13"),
    ({"save_steps": 500}, "training.save_steps=500"),
    # the last step is followed by the measurement at the end
    ({"eval_steps": 12}, "training.eval_steps=12"),
    ({"save_steps": 500, "eval_steps": 100}, "training.save_steps=500, training.eval_steps=100"),
]


@pytest.mark.parametrize(("intervals", "told"), INTERVALS)
def test_an_interval_longer_than_the_run_is_told(intervals, told):
    note = describe_schedule(Training(learning_rate=PEAK, **intervals), 12)
    end = ": longer than the run of 12 steps, whose end alone counts"
    assert note == (f"schedule: {told}{end}" if told else "")


def test_a_trainer_tells_its_schedule(composed, tokenizer, tmp_path):
    contexts = ContextFactory(composed, tokenizer, tmp_path)
    for steps, told in (("1", "schedule: nothing is trained"), ("20", "")):
        context = contexts.create("sft", f"training.max_steps={steps}")
        make_trainer(context)
        lines = [line for line in console_output(context).splitlines() if line.startswith("schedule: ")]
        assert len(lines) == bool(told) and told in "".join(lines)


NO_EFFECT = [
    ("", ""),
    ("recipe=demo parallel=lora training.max_steps=3", ""),
    ("parallel=lora parallel.rank=64 training.save_steps=2 training.save_total_limit=1", ""),
    ("training.num_train_epochs=3", ""),
    (
        "training.num_train_epochs=3 training.max_steps=7",
        "training.num_train_epochs=3.0 (training.max_steps=7 goes first)",
    ),
    ("parallel.rank=64", "parallel.rank=64 (parallel.adapter=none trains every weight)"),
    ("method.divergence_alpha=0.3", "method.divergence_alpha=0.3 (method.divergence=reverse_kl)"),
    ("training.lr_scheduler_type=constant", ""),
    (
        "training.lr_scheduler_type=constant training.warmup_steps=5",
        "training.warmup_steps=5.0 (lr_scheduler",
    ),
    ("training.save_total_limit=1", "training.save_total_limit=1 (training.save_steps=null)"),
    (
        "training.max_nonfinite=1 eval=none eval.batch=4",
        "training.max_nonfinite=1 (training.on_nonfinite=stop); ",
    ),
    ("data.eval_fraction=0.5", "data.eval_fraction=0.5 (the held-out rows are named)"),
    ("data.clean.threshold=0.9", "data.clean.threshold=0.9 (data.clean.duplicates=none)"),
    ("data.clean.threshold=0.9 data.clean.duplicates=near", ""),
    ("data.clean.ngram=8 data.clean.overlap=none", "data.clean.ngram=8 (data.clean.overlap=none, and no"),
]


@pytest.mark.parametrize(("overrides", "told"), NO_EFFECT)
def test_a_setting_without_effect_is_told(overrides, told, composed):
    note = describe_no_effect(composed(overrides.split()))
    assert note.startswith(f"no effect: {told}") if told else note == ""


@pytest.mark.parametrize(
    ("overrides", "advised"),
    [
        ("method=reward parallel=lora", "training.learning_rate=0.0001"),
        ("method=sft parallel=qlora", "training.learning_rate=0.0002"),
        ("method=dpo parallel=fsdp_lora", "training.learning_rate=1e-05"),
        ("method=dpo parallel=lora training.learning_rate=3e-6", ""),
        ("method=reward", ""),
    ],
)
def test_the_rate_of_all_weights_is_told_where_an_adapter_is_trained_at_it(overrides, advised, composed):
    note = describe_adapter_rate(composed(overrides.split()))
    assert note.endswith(advised) and bool(note) == bool(advised)
