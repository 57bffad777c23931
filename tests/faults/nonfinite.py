"""NaN and infinity in a loss, a gradient or an input: the step is skipped, its rows are recorded, and no
checkpoint holds such a value.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness import Row, attempt, last_output, remove_run

from alignment_lab.checkpoints import manifest
from alignment_lab.config import Experiment, OnNonfinite
from alignment_lab.runtime.run_directory import RunDirectory


def inject_into_loss(step: int, value: float) -> None:
    """In every pass of the step."""
    from alignment_lab.training import passes

    original = passes.pass_loss

    def pass_loss(trainer, *arguments, **options):
        loss = original(trainer, *arguments, **options)
        return loss * (value if trainer.state.step == step - 1 else 1)

    passes.pass_loss = pass_loss


def inject_into_gradient(step: int, value: float) -> None:
    """In the gradient of one weight, after a finite loss."""
    from alignment_lab.training import Trainer

    original = Trainer.backward

    def backward(self, batch):
        loss = original(self, batch)
        weight = next(weight for weight in self.model.parameters() if weight.grad is not None)
        weight.grad.view(-1)[0] = value if self.state.step == step - 1 else weight.grad.view(-1)[0]
        return loss

    Trainer.backward = backward


def inject_into_input(step: int, value: float) -> None:
    """In the input of the first decoder layer, at one token."""
    from alignment_lab.training import Trainer

    original = Trainer.backward

    def backward(self, batch):
        def corrupt(module, arguments, output):
            output = output.clone()
            output.view(-1)[0] = value
            return output

        is_target = self.state.step == step - 1
        hook = self.model.get_input_embeddings().register_forward_hook(corrupt) if is_target else None
        try:
            return original(self, batch)
        finally:
            if hook:
                hook.remove()

    Trainer.backward = backward


INJECTIONS: dict[str, Callable[[int, float], None]] = {
    "loss": inject_into_loss,
    "gradient": inject_into_gradient,
    "input": inject_into_input,
}


def campaign(spec: Experiment, folder: Path, steps: Sequence[int], quick: bool = False) -> Iterator[Row]:
    """NaN and infinity in each tensor, at a step before, at and after a save.

    The run stops, or continues without that step, as training.on_nonfinite says. A quick one takes NaN and
    infinity in turn, so that each tensor and each policy has both.
    """
    values = itertools.cycle([(math.nan,), (math.inf,), (math.inf,), (math.nan,)])
    for name, inject in INJECTIONS.items():
        for policy in OnNonfinite:
            tried = next(values) if quick else (math.nan, math.inf)
            row = Row(f"not finite: {name}, on_nonfinite={policy.name}")
            for step in steps:
                for value in tried if step > 1 else (math.nan,):
                    remove_run(folder)
                    experiment = replace(spec, training=replace(spec.training, on_nonfinite=policy))
                    code = attempt(experiment, folder, before=partial(inject, step, value))
                    problem = _find_problem(RunDirectory(folder), code, step, policy)
                    row.count(problem is None, f"{value} at step {step}: {problem}; {last_output(folder)}")
            remove_run(folder)
            yield row


def _find_problem(run: RunDirectory, code: int, step: int, policy: OnNonfinite) -> str | None:
    from safetensors.numpy import load_file

    skipped = [json.loads(line) for line in (run.path / "refused.jsonl").read_text().splitlines()]
    if [entry["step"] for entry in skipped] != [step] or not all(entry["rows"] for entry in skipped):
        return f"refused: {skipped}"
    saved_steps = [manifest.step_of(path) for path in manifest.list_checkpoints(run.checkpoints)]
    for file in run.path.rglob("*.safetensors"):
        if not all(math.isfinite(float(abs(tensor).max())) for tensor in load_file(file).values()):
            return f"{file} is not finite"
    if policy is OnNonfinite.skip:
        return None if code == 0 and run.state()["state"] == "finished" else f"exit {code}"
    if (
        code != 1
        or run.state()["state"] != "failed"
        or f"step {step}: the gradient's norm is" not in run.state()["error"]
    ):
        return f"exit {code}, {run.state()['error']}"
    return None if all(entry < step for entry in saved_steps) else f"checkpoints {saved_steps}"
