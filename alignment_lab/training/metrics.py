"""Metrics of the steps since the last log: they stay on the device until they are logged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..distributed import collectives, ranks


class MetricWindow:
    """Sums and counts of every metric, of this process, since the last log."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.steps = device, 0
        self.losses: list[Tensor] = []  # this process's part of each step's loss
        self.sums: dict[str, list[Tensor]] = defaultdict(list)  # [sum, count] of each pass

    def add(self, values: Mapping[str, Tensor]) -> None:
        """A pass's metrics: one value per row. Nothing waits for the device."""
        for name, rows in values.items():
            if name != "loss":
                count = rows.new_full((), rows.numel(), dtype=torch.float64)
                self.sums[name].append(torch.stack([rows.detach().double().sum(), count]))

    def add_loss(self, loss: Tensor) -> None:
        """This process's part of a step's loss."""
        self.losses.append(loss.detach().double())
        self.steps += 1

    def pop(self) -> tuple[float, dict[str, float]]:
        """The mean loss of the steps, and each metric's mean over the rows of all processes. Every process
        together.

        This is where the device is waited for.
        """
        everyone = collectives.all_gather((self._loss(), self._totals()))
        loss = sum(loss for loss, _ in everyone) / len(everyone) / self.steps
        totals: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for _, theirs in everyone:
            for name, total in theirs.items():
                totals[name].append(total)
        self.steps, self.losses = 0, []
        self.sums.clear()
        pairs = {name: [sum(column) for column in zip(*parts, strict=True)] for name, parts in totals.items()}
        return loss, {name: total / count for name, (total, count) in pairs.items() if count}

    def _loss(self) -> float:
        return torch.stack(self.losses).sum().item() if self.losses else 0.0

    def _totals(self) -> dict[str, tuple[float, float]]:
        if not self.sums:
            return {}
        totals = torch.stack([torch.stack(parts).sum(0) for parts in self.sums.values()]).tolist()
        return {name: (total, count) for name, (total, count) in zip(self.sums, totals, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """What was not logged yet, of all processes, so that any number of them continues with it."""
        parts = {name: torch.stack(values).tolist() for name, values in self.sums.items()}
        everyone = collectives.all_gather((self._loss(), parts))
        sums: dict[str, list[list[float]]] = defaultdict(list)
        for _, theirs in everyone:
            for name, values in theirs.items():
                sums[name] += values
        return {"loss": sum(loss for loss, _ in everyone) / len(everyone), "steps": self.steps, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it: the loss is every process's, the sums are the main process's."""
        self.steps = state["steps"]
        self.losses = (
            [torch.tensor(state["loss"], dtype=torch.float64, device=self.device)] if self.steps else []
        )
        if ranks.is_main_process():
            for name, values in state["sums"].items():
                self.sums[name] += torch.tensor(values, dtype=torch.float64, device=self.device).unbind()
