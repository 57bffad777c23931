"""The training loop, from top to bottom: what happens in a step, in which order, and where a checkpoint or a
signal comes in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from signal import Signals

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import set_seed

from ..checkpoints.manager import CheckpointManager
from ..config import Sharding
from ..data import Chained, Row, with_columns
from ..distributed import collectives, ranks
from ..distributed.full_state import count_parameters
from ..engine.logprobs import evaluation_mode
from ..runtime.errors import Interrupted
from ..runtime.signals import StopRequest
from .backend import Backend
from .batch import GlobalBatch, collate
from .callbacks import Callback, Hooks
from .context import TrainContext
from .heldout import HeldoutScorer
from .metrics import MetricWindow
from .objective import Objective
from .optimizer import create_optimizer, create_scheduler
from .passes import coupled_passes, separate_passes
from .sampler import GlobalBatchSampler
from .schedule_notes import describe_schedule
from .state import TrainState, load_state, save_state
from .workers import worker_options


class Trainer:
    """Trains a model with one objective, one global batch per optimizer step. Every process goes through all
    of it.
    """

    def __init__(
        self,
        context: TrainContext,
        objective: Objective,
        *,
        hooks: Hooks | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoints: CheckpointManager | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        set_seed(context.spec.training.seed)
        self.context, self.objective, self.training = context, objective, context.spec.training
        self.model = context.model
        self.hooks, self.callbacks = hooks or Hooks(), list(callbacks)
        self.checkpoints, self.stop = checkpoints, stop or StopRequest()
        self.train_rows = objective.prepare_rows(context.train_rows)
        self.heldout_rows = objective.prepare_rows(context.scored_rows)
        self.metrics = MetricWindow(context.device)
        groups, kinds = objective.groups(self.train_rows)
        self.sampler = GlobalBatchSampler(groups, kinds, self.training.global_batch, self.training.seed)
        self.state = TrainState(max_steps=self._max_steps())
        self.started = False  # whether the initial policy was asked for what only it can say

    # The loop.

    def train(self) -> None:
        """Train to the last step, from the newest checkpoint where there is one.

        Raises Interrupted after a signal, once a checkpoint is committed; RunError where a step cannot be
        taken or a checkpoint not be written.
        """
        checkpoint = self.checkpoints.find_latest() if self.checkpoints else None
        self.prepare()
        if checkpoint:
            load_state(self, checkpoint)
        self.stop.deferred = True  # from here on there is something to lose: a signal lets the step end
        for callback in self.callbacks:
            callback.on_train_begin(self.state)
        for batch in self.batches():
            for callback in self.callbacks:
                callback.on_step_begin(self.state)
            self.train_step(batch)
            stopping = collectives.any_process(self.stop.signal is not None)
            is_last = self.state.step >= self.state.max_steps
            for callback in self.callbacks:
                callback.on_step_end(self.state)
            if is_last or stopping or self._is_due(self.training.logging_steps):
                self.log_step()
            if not is_last and self._is_due(self.training.eval_steps):
                self.log(self.heldout.means())
            if (self.training.save_steps and is_last) or stopping or self._is_due(self.training.save_steps):
                self.save_checkpoint()
            if stopping:
                break
        for callback in self.callbacks:
            callback.on_train_end(self.state)
        self.check_stop()

    def train_step(self, batch: GlobalBatch) -> float:
        """Forward and backward of a global batch, and one optimizer step; gives the gradient's norm before
        clipping.
        """
        self.backend.wrapped.train()
        batch.is_first_step = self.state.step == 0
        self.backward(batch)
        self.grad_norm = self.backend.clip_gradients()
        if math.isfinite(self.grad_norm):
            self.backend.step()
        else:
            self.backend.skip_step()
            self.hooks.on_nonfinite(self.state.step + 1, self.grad_norm, self._describe_rows(batch))
        self.learning_rate = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()  # the schedule is one of steps, taken or not
        self.state.step += 1
        self.state.num_tokens += batch.num_tokens
        return self.grad_norm

    def backward(self, batch: GlobalBatch) -> Tensor:
        """The gradient of a global batch, pass by pass; gives this process's part of the loss. Nothing waits
        for the device.
        """
        with evaluation_mode(self.model, self.context.dtype):
            batch.aux_stats = self.objective.aux_stats(batch)
        coupled = self.context.spec.method.couples_rows and len(batch.passes) > 1
        loss = coupled_passes(self, batch) if coupled else separate_passes(self, batch)
        self.metrics.add_loss(loss)
        return loss

    def batches(self) -> Iterator[GlobalBatch]:
        """The global batches of the steps that are left, in the sampler's order, epoch after epoch.

        One item of the loader is one global batch. Every process goes through all of them, and takes its
        share of each.
        """
        while self.state.step < self.state.max_steps:
            self.sampler.set_epoch(*divmod(self.state.step, len(self.sampler)))
            for batch in self.dataloader():
                yield batch.to(self.context.device)
                if self.state.step >= self.state.max_steps:
                    return

    def dataloader(self) -> DataLoader[GlobalBatch]:
        """One epoch, from the sampler's step on. It draws no number from torch's random state."""

        def collate_rows(indices: Sequence[int]) -> GlobalBatch:
            return collate(self.objective, [self.train_rows[index] for index in indices], indices)

        return DataLoader(
            range(len(self.train_rows)),  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            collate_fn=collate_rows,
            generator=torch.Generator(),
            **worker_options(self.training.dataloader_num_workers),
        )

    # Before the first step.

    def prepare(self) -> None:
        """Shard and wrap the model, make optimizer and schedule, and ask the initial policy what only it can
        say.
        """
        if self.context.gradient_checkpointing:
            self.model.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": False}
            )
        assert self.context.accelerator is not None
        self.backend = Backend(
            self.context.accelerator, self.model, self.sharding, self.training.max_grad_norm
        )
        self.backend.wrap(create_optimizer(self.model, self.training))
        self.optimizer = self.backend.optimizer
        self.scheduler = create_scheduler(self.optimizer, self.training, self.state.max_steps)
        if note := describe_schedule(self.training, self.state.max_steps):
            self.context.notify(note)
        self.start()

    def start(self) -> None:
        """Compute the reference log-probabilities before the first step, and before a checkpoint is loaded.
        Once.
        """
        if self.started:
            return
        with self.hooks.reference_timer:
            self.context.choose_layout()
            columns = self.objective.reference_columns(Chained([self.train_rows, self.heldout_rows]))
            end = len(self.train_rows)
            of_train = {name: values[:end] for name, values in columns.items()}
            of_heldout = {name: values[end:] for name, values in columns.items()}
            self.train_rows = with_columns(self.train_rows, of_train)
            self.heldout_rows = with_columns(self.heldout_rows, of_heldout)
        self.started = True
        self.hooks.on_start(self)

    @property
    def heldout(self) -> HeldoutScorer:
        """Scores the held-out rows. Made on demand: a reference cycle would keep the model in memory."""
        return HeldoutScorer(self)

    @property
    def sharding(self) -> Sharding:
        """How weights are spread over processes: not at all where there is one."""
        return self.context.spec.parallel.sharding if ranks.world_size() > 1 else Sharding.none

    def _max_steps(self) -> int:
        if self.training.max_steps > 0:
            return self.training.max_steps
        return math.ceil(self.training.num_train_epochs * len(self.sampler))

    # After a step.

    def _is_due(self, every: int | None) -> bool:
        return bool(every) and self.state.step % (every or 1) == 0

    def log_step(self) -> None:
        """Log what the steps since the last log came to."""
        loss, means = self.metrics.pop()
        last = {
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "num_tokens": self.state.num_tokens,
        }
        self.log({"loss": loss, **last, **means})

    def log(self, metrics: Mapping[str, float]) -> None:
        """Tell the callbacks, with what the objective derives."""
        logged = dict(metrics)
        self.objective.derive(logged)
        for callback in self.callbacks:
            callback.on_log(self.state, logged)

    def save_checkpoint(self) -> None:
        """Write a checkpoint, and commit it when all of it is there. Every process together."""
        if self.checkpoints is None:
            return
        trained = count_parameters(self.model, trainable_only=True)
        with self.checkpoints.saving(self.state.step, trained) as folder:
            save_state(self, folder)
            collectives.barrier()
            self.hooks.heartbeat()
            if ranks.is_main_process():
                self.checkpoints.commit(self.state.step)
            collectives.barrier()
        self.hooks.heartbeat()
        self.hooks.on_save(self)
        for callback in self.callbacks:
            callback.on_save(self.state)

    def check_stop(self) -> None:
        """Where a signal came to any process: commit a checkpoint of the steps taken, raise Interrupted. All
        together.
        """
        if not collectives.any_process(self.stop.signal is not None):
            return
        signal, where = self.stop.signal or Signals.SIGTERM, ""
        if self.stop.deferred and self.checkpoints:
            if self.checkpoints.last_saved_step != self.state.step:
                self.save_checkpoint()
            where = self.checkpoints.continue_hint(self.state.step)
        raise Interrupted(signal, f"interrupted by {signal.name}{where}")

    def _describe_rows(self, batch: GlobalBatch) -> list[Row]:
        """The rows of a batch by their index and first words."""
        return [
            {"row": index, "begins": self._first_words(self.train_rows[index])} for index in batch.row_indices
        ]

    def _first_words(self, row: Row) -> str:
        first = self.objective.score_inputs(row)[0]
        return str(self.context.tokenizer.decode((first.prompt or first.answer)[:20]))

    def floating_point_ops(self, batch: GlobalBatch) -> int:
        """FLOPs of a step on this process: 6 N per token, N the parameters without the embedding."""
        parameters = count_parameters(self.model) - count_parameters(self.model.get_input_embeddings())
        return 6 * parameters * sum(one.input_ids.numel() for one in batch.passes)
