"""One optimizer step, whatever the objective: a global batch of rows, laid out in as few forward passes as memory allows.

transformers' Trainer keeps its loop, its optimizer and its checkpoints. A method says which sequences a row has, and what their
log-probabilities cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerControl

from ..config import Sharding
from ..distributed import collectives, ranks
from ..distributed.fsdp import shard_model
from ..distributed.full_state import count_parameters
from ..engine.layout import ForwardBatch
from ..engine.logprobs import TokenLogprobs, evaluation_mode, token_logprobs
from ..engine.packing import ScoredSequence
from ..evaluation.intervals import Scores
from ..runtime.progress import progress_tracker
from .sampler import GlobalBatchSampler
from .stateful import StatefulTrainer
from .workers import PickledWhole, worker_options

if TYPE_CHECKING:
    from .context import TrainContext

Row = dict[str, Any]


@dataclass
class GlobalBatch(PickledWhole):
    """The rows of one optimizer step: forward passes with a gradient, forward passes without, and what else is known of each row."""

    packs: list[ForwardBatch]  # of this process
    rows: int  # of all
    columns: dict[str, Tensor]  # [rows, ...] each
    aside: list[ForwardBatch] = field(default_factory=list)  # forward passes that only inform the loss
    facts: dict[str, Tensor] = field(default_factory=dict)  # what those came to
    places: list[int] = field(default_factory=list)  # of the rows, among those to train on

    def to(self, device: torch.device | str, **_: Any) -> GlobalBatch:
        """The same on `device`."""
        columns = {name: values.to(device) for name, values in self.columns.items()}
        return replace(
            self,
            packs=[p.to(device) for p in self.packs],
            aside=[p.to(device) for p in self.aside],
            columns=columns,
        )


class LabTrainer(StatefulTrainer):
    """The base of every method's trainer. Heirs say `sequences`, `columns` and `values`; the mean of `values()["loss"]` is the loss."""

    wants: dict[str, bool] = {}  # what `token_logprobs` is asked for besides log-probabilities

    def __init__(self, setting: TrainContext, train: list[Row], heldout: list[Row]) -> None:
        super().__init__(
            model=setting.model,
            args=setting.arguments,
            train_dataset=train,
            data_collator=self.collate,
            processing_class=setting.tokenizer,
        )
        self.model_accepts_loss_kwargs = False
        self.setting, self.rows, self.heldout = setting, train, heldout
        self.begun = False
        self.batch: GlobalBatch | None = None  # of the step in progress
        self.spare = False  # whether the pass that is being looked at counts for nothing
        self.asking: AbstractContextManager[None] = nullcontext()  # around what the untouched model is asked
        self.opening: Callable[[], None] = lambda: None  # called when that is known
        self.heed: Callable[[], None] = lambda: None  # called where leaving loses nothing
        self.refuse: Callable[[int, float, list[Row]], None] = lambda step, norm, rows: (
            None
        )  # told of a step that was not taken

    # What a method says.

    def sequences(self, row: Row) -> list[ScoredSequence]:
        """What is scored of a row."""
        raise NotImplementedError

    def columns(self, rows: list[Row]) -> dict[str, Tensor]:
        """What else the loss needs of each row: [rows, ...] by name."""
        return {}

    def aside(self, rows: list[Row]) -> list[ScoredSequence]:
        """Sequences whose log-probabilities only inform the loss."""
        return []

    def informed(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """What those forward passes came to, without a gradient: scalars by name."""
        return {}

    def completed(self, rows: list[Row]) -> list[Row]:
        """The rows with what only the untouched model can say."""
        return rows

    def values(self, seen: TokenLogprobs, batch: GlobalBatch) -> dict[str, Tensor]:
        """`loss` and every metric, one value per row among those in `seen`; losses of all rows of the batch average to the loss."""
        raise NotImplementedError

    def units(self) -> tuple[list[list[int]], list[Any]]:
        """Rows that stay together in an epoch's order, and of which kind each unit is."""
        return [[row] for row in range(len(self.rows))], [0] * len(self.rows)

    # The order of rows and their layout.

    def collate(self, rows: list[Row]) -> dict[str, GlobalBatch]:
        """Lay out the rows of a global batch. Runs in a data worker too, and gives the same there."""
        engine = self.setting.engine
        packs = engine.local_batches([sequence for row in rows for sequence in self.sequences(row)])
        return {"batch": GlobalBatch(packs, len(rows), self.columns(rows), engine.local_batches(self.aside(rows)))}

    def batches(self) -> GlobalBatchSampler:
        """The order in which rows are seen."""
        training = self.setting.spec.training
        return GlobalBatchSampler(*self.units(), training.global_batch, training.seed)

    def get_train_dataloader(self) -> DataLoader:
        """One item is one global batch. Every process goes through all of them, and takes its share of each."""
        places = range(len(self.rows))  # looked up late: rows are complete when the untouched model was asked

        def collate(found: list[int]) -> dict[str, GlobalBatch]:
            made = self.collate([self.rows[place] for place in found])
            made["batch"].places = found
            return made

        made_by = worker_options(self.args.dataloader_num_workers)
        loader: DataLoader = DataLoader(places, batch_sampler=self.batches(), collate_fn=collate, **made_by)  # type: ignore[arg-type]
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True
        )

    # Before the first step.

    def begin(self) -> None:
        """Ask the untouched model what has to be known of it. Every process together; once."""
        if not self.begun:
            with self.asking:
                self.setting = self.setting.complete()
                rows = self.completed([*self.rows, *self.heldout])
                self.rows, self.heldout = rows[: len(self.rows)], rows[len(self.rows) :]
            self.begun = True
            self.opening()

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> Any:
        """As transformers has it, with the untouched model asked when it is wrapped and before a checkpoint is loaded into it."""
        if self.sharding is Sharding.fsdp:
            shard_model(self.model)
            self.is_distributed_loading_by_transformers = (
                True  # transformers and accelerate then leave its weights where they are
            )
        found = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.begin()
        if resume_from_checkpoint is not None:
            self._restore(Path(resume_from_checkpoint))
        return found

    @property
    def sharding(self) -> Sharding:  # type: ignore[override]
        """How weights are spread over processes."""
        return self.setting.spec.parallel.sharding if ranks.world_size() > 1 else Sharding.none

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        norm = (
            norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        )  # each process knows its own part of it
        if not math.isfinite(norm):
            self._leave_out(float(norm))
        return norm

    def _leave_out(self, norm: float) -> None:
        """No step is taken: an optimizer passes over weights that have no gradient. DeepSpeed has left it out by itself already."""
        assert self.batch is not None
        if self.is_deepspeed_enabled:
            self.lr_scheduler.step()  # the schedule is one of steps, taken or not
        else:
            self.model.zero_grad(set_to_none=True)
        rows = [{"row": place, "begins": self._beginning(self.rows[place])} for place in self.batch.places]
        self.refuse(self.state.global_step + 1, norm, rows)

    def _beginning(self, row: Row) -> str:
        first = self.sequences(row)[0]
        return self.setting.tokenizer.decode((first.prompt or first.answer)[:20])

    # One step.

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of a global batch, pack by pack; nothing waits for the device."""
        model.train()
        self.batch = batch = inputs["batch"]
        batch.facts = self._informed(batch)
        if self.setting.spec.method.couples_rows and len(batch.packs) > 1:
            return self._coupled_step(model, batch)
        losses = []
        for pack in batch.packs:
            with self._reduced(model, pack is batch.packs[-1]):
                with self.compute_loss_context_manager():
                    loss = self._loss(self.see(model, pack), batch, spare=pack.is_filler)
                losses.append(loss.detach())
                self.accelerator.backward(loss * self._sound(losses) if pack is batch.packs[-1] else loss)
            self.beat()
        return torch.stack(losses).sum()

    @staticmethod
    def _sound(losses: list[Tensor]) -> Tensor:
        """1, and NaN where a loss is no number: then no gradient is one, on any process, and none of them takes the step."""
        total = torch.stack(losses).sum()
        return 1 + (total - total)

    @contextmanager
    def _reduced(self, model: Any, last: bool) -> Iterator[None]:
        """Gradients of all processes meet at a step's last pass; where each holds a part of them, at every pass."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        whole = self.sharding is Sharding.ddp
        with self.accelerator.no_sync(model) if whole and not last else nullcontext():
            yield

    def see(self, model: Any, pack: ForwardBatch) -> TokenLogprobs:
        """One forward pass."""
        return token_logprobs(model, pack, **self.wants)

    def _loss(self, seen: TokenLogprobs, batch: GlobalBatch, *, spare: bool = False) -> Tensor:
        """This process's part, times the number of processes: they are averaged. A spare pass counts for nothing."""
        self.spare = spare
        values = self.values(seen, batch)
        for name, rows in values.items():
            if name != "loss" and not spare:
                self._sums[name].append(
                    torch.stack(
                        [rows.detach().double().sum(), torch.tensor(float(rows.numel()), device=rows.device)]
                    )
                )
        return values["loss"].sum() * (0 if spare else ranks.world_size() / batch.rows)

    def _coupled_step(self, model: Any, batch: GlobalBatch) -> Tensor:
        """A loss of all rows at once over several packs, exactly: what each token's gradient is, then the packs again with it.

        Gradient caching, Gao et al. 2021 (arXiv:2101.06983): one more forward pass, no more memory.
        """
        with torch.no_grad(), self.compute_loss_context_manager():
            parts = [self.see(self.model, pack) for pack in batch.packs]
        seen = self.joined(batch.packs, parts)
        seen = replace(seen, logps=seen.logps.requires_grad_())
        loss = self._loss(seen, batch)
        (gradient,) = torch.autograd.grad(loss, seen.logps)
        slopes = dict(zip(seen.sequence_ids.tolist(), gradient.split(seen.lengths.tolist()), strict=True))
        for pack in batch.packs:
            with self._reduced(model, pack is batch.packs[-1]):
                with self.compute_loss_context_manager():
                    again = self.see(model, pack).logps
                part = torch.cat([slopes[member] for member in pack.sequence_ids.tolist()])
                self.accelerator.backward(
                    (again * part).sum() * (not pack.is_filler) * self._sound([loss.detach()])
                )
            self.beat()
        return loss.detach() / ranks.world_size()

    def joined(self, packs: Sequence[ForwardBatch], parts: Sequence[TokenLogprobs]) -> TokenLogprobs:
        """What all processes saw, as one: these are the passes of this one. Without gradients."""
        mine = [part.detach() for pack, part in zip(packs, parts, strict=True) if not pack.is_filler]
        if ranks.world_size() == 1:
            return TokenLogprobs.cat(mine)
        everyone = collectives.all_gather([part.to("cpu") for part in mine])
        return TokenLogprobs.cat([part for found in everyone for part in found]).to(self.args.device)

    def _informed(self, batch: GlobalBatch) -> dict[str, Tensor]:
        with evaluation_mode(self.model, self.setting.dtype):
            return self.informed(batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the steps since the last log came to; this is where the device is waited for."""
        if "loss" in logs and (self._sums or ranks.world_size() > 1):
            logs |= self._means()
        self.derived(logs)
        super().log(logs, start_time)

    def _means(self) -> dict[str, float]:
        """Of every metric over the rows of all processes since the last time."""
        totals = (
            torch.stack([torch.stack(parts).sum(0) for parts in self._sums.values()]).tolist()
            if self._sums
            else []
        )
        everyone = collectives.all_gather(dict(zip(self._sums, totals, strict=True)))
        self._sums.clear()
        names = dict.fromkeys(name for one in everyone for name in one)
        found = {
            name: [sum(pair) for pair in zip(*(one[name] for one in everyone if name in one), strict=True)]
            for name in names
        }
        return {name: total / count for name, (total, count) in found.items() if count}

    def derived(self, logs: dict[str, float]) -> None:
        """Add what follows from the means that are logged."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 N per token, N without the embedding; transformers would count the parameters again at every step."""
        return 6 * self._parameters() * sum(pack.input_ids.numel() for pack in inputs["batch"].packs)

    def _parameters(self) -> int:
        if not hasattr(self, "_counted"):
            embeddings = self.model.get_input_embeddings()
            self._counted = count_parameters(self.model) - count_parameters(embeddings)
        return self._counted

    # Held-out rows.

    control: TrainerControl

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the held-out rows, log the means."""
        metrics = {name: scores.mean for name, scores in self.heldout_scores().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def heldout_scores(self, *, initial: bool = False) -> dict[str, Scores]:
        """Scores of the held-out rows by TRL's metric names with `eval_`; `initial` says that the weights are untouched."""
        if not self.heldout:
            return {}
        return {
            f"eval_{name}": self.scored(name, values.tolist())
            for name, values in self.heldout_values(initial).items()
        }

    def scored(self, name: str, values: Sequence[float]) -> Scores:
        """A metric of every held-out row."""
        return Scores(list(values), share=name in ("rewards/accuracies", "accuracy"))

    def heldout_values(self, initial: bool) -> dict[str, Tensor]:
        """`values` of all held-out rows as one global batch; the model is told that this is no training."""
        seen, batch = self.heldout_seen()
        with evaluation_mode(self.model, self.setting.dtype):
            return self.values(seen, batch)

    def watched(self, label: str) -> Callable[[Sequence[Any]], Iterator[Any]]:
        """Goes through a sequence with a bar. A process by itself may leave between any two; several leave together, at the end."""

        def through(steps: Sequence[Any]) -> Iterator[Any]:
            for step in progress_tracker(label, self.setting.console)(steps):
                yield step
                self.beat()
                if ranks.world_size() == 1:
                    self.heed()

        return through

    def heldout_seen(self) -> tuple[TokenLogprobs, GlobalBatch]:
        """What the model says of all held-out rows now, without gradients."""
        batch = self.collate(self.heldout)["batch"].to(self.args.device)
        batch.facts = self._informed(batch)
        with evaluation_mode(self.model, self.setting.dtype):
            parts = [self.see(self.model, pack) for pack in self.watched("held-out rows")(batch.packs)]
        return self.joined(batch.packs, parts), batch
