"""A loss, a gradient or an input that is no number: no step is taken, no such checkpoint is made, the rows
are named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from harness import Row, attempt, clean, said

from alignment_lab.checkpoints import manifest
from alignment_lab.config import Experiment, OnNonfinite
from alignment_lab.runtime.run_directory import RunDirectory


def in_the_loss(step: int, value: float) -> None:
    """Of the step's first pass."""
    from alignment_lab.training import passes

    true = passes.pass_loss

    def pass_loss(trainer, *arguments, **options):
        loss = true(trainer, *arguments, **options)
        return loss * (value if trainer.state.step == step - 1 else 1)

    passes.pass_loss = pass_loss


def in_a_gradient(step: int, value: float) -> None:
    """Of one weight, after a loss that is fine."""
    from alignment_lab.training import Trainer

    true = Trainer.backward

    def backward(self, batch):
        loss = true(self, batch)
        weight = next(weight for weight in self.model.parameters() if weight.grad is not None)
        weight.grad.view(-1)[0] = value if self.state.step == step - 1 else weight.grad.view(-1)[0]
        return loss

    Trainer.backward = backward


def in_an_input(step: int, value: float) -> None:
    """Of the first decoder layer, at one token."""
    from alignment_lab.training import Trainer

    true = Trainer.backward

    def backward(self, batch):
        def broken(module, arguments, output):
            output = output.clone()
            output.view(-1)[0] = value
            return output

        hurt = self.state.step == step - 1
        hook = self.model.get_input_embeddings().register_forward_hook(broken) if hurt else None
        try:
            return true(self, batch)
        finally:
            if hook:
                hook.remove()

    Trainer.backward = backward


PLACES: dict[str, Callable[[int, float], None]] = {
    "loss": in_the_loss,
    "gradient": in_a_gradient,
    "input": in_an_input,
}


def campaign(spec: Experiment, folder: Path, steps: Sequence[int]) -> Iterator[Row]:
    """NaN and infinity in each place, at a step before, at and after a save; the run stops, or goes on
    without that step.
    """
    for name, place in PLACES.items():
        for policy in OnNonfinite:
            row = Row(f"no number in the {name}, on_nonfinite={policy.name}")
            for step in steps:
                for value in (math.nan, math.inf) if step > 1 else (math.nan,):
                    clean(folder)
                    told = replace(spec, training=replace(spec.training, on_nonfinite=policy))
                    code = attempt(
                        told, folder, before=lambda place=place, step=step, value=value: place(step, value)
                    )
                    wrong = _wrong(RunDirectory(folder), code, step, policy)
                    row.count(wrong is None, f"{value} at step {step}: {wrong}; {said(folder)}")
            clean(folder)
            yield row


def _wrong(run: RunDirectory, code: int, step: int, policy: OnNonfinite) -> str | None:
    from safetensors.numpy import load_file

    refused = [json.loads(line) for line in (run.path / "refused.jsonl").read_text().splitlines()]
    if [one["step"] for one in refused] != [step] or not all(one["rows"] for one in refused):
        return f"refused: {refused}"
    kept = [manifest.step_of(path) for path in manifest.list_checkpoints(run.checkpoints)]
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
    return None if all(one < step for one in kept) else f"checkpoints {kept}"
