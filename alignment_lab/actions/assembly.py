"""An experiment's parts, loaded and put together: what a run trains, and what is made for a sweep's cells before they start.

Every process goes through all of it. Refuses to know what is measured, saved or reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import data, estimate, training
from ..config import Experiment, Format, Quantization, Sharding
from ..distributed import collectives, ranks
from ..distributed.full_state import count_parameters
from ..methods import METHODS, TrainContext
from ..models.device import device_and_dtype, free_memory
from ..models.loading import load_policy
from ..models.tokenizer import load_tokenizer, tokenizer_digest
from ..runtime.errors import UserError
from ..runtime.run_directory import RunDirectory

Row = dict[str, Any]


@dataclass(frozen=True)
class Tokens:
    """The rows that this run can see, as token ids; what was left out or cut is counted in `rows`."""

    rows: data.Splits
    where: Path  # the model lies
    tokenizer: Any
    train: list[Row]
    heldout: list[Row]
    available: int  # of the data, to train on; of texts, blocks are the rows
    digest: str = ""  # of the tokenizer


def tokenized(spec: Experiment, rows: data.Splits, where: Path, console: Console) -> Tokens:
    """Tokenize, or find it done in the cache. Raises UserError where no row is left."""
    tokenize, tokenizer = METHODS[spec.method.name].tokenize, load_tokenizer(spec.model, where)
    collectives.init_process_group(cpu=device_and_dtype(spec)[0].type == "cpu")
    digest, limit = tokenizer_digest(tokenizer), spec.data.max_length
    with collectives.main_process_first():
        train, counts = data.tokenize_cached(
            tokenize, tokenizer, digest, rows.train[: data.max_train_rows(spec)], limit
        )
        heldout, more = data.tokenize_cached(
            tokenize,
            tokenizer,
            digest,
            data.take_groups(rows.heldout, max(spec.eval.rows, spec.eval.generations)),
            limit,
        )
    counts += more
    rows.truncated = counts.pop("truncated", 0)
    rows.dropped += counts
    if not train:
        raise UserError(
            f"data.max_length={spec.data.max_length}: no row fits; raise it, or give shorter rows."
        )
    available = len(train if spec.method.format is Format.text else rows.train)
    found = Tokens(rows, where, tokenizer, train, heldout, available, digest)
    console.print(_counted(found), highlight=False, soft_wrap=True)
    return found


def _counted(tokens: Tokens) -> str:
    """What became of the rows, in a line: nobody should find out from a curve."""
    rows = tokens.rows
    left_out = (
        "; ".join(f"{count} left out: {reason}" for reason, count in sorted(rows.dropped.items()))
        or "none left out"
    )
    used = f"{len(tokens.train)} of {tokens.available} to train on, {len(tokens.heldout)} held out"
    return f"rows: {used}; {left_out}; {rows.truncated} cut at data.max_length"


def build_trainer(
    spec: Experiment,
    run: RunDirectory,
    tokens: Tokens,
    console: Console,
    load: Callable[..., Any] = load_policy,
) -> Any:
    """The method's trainer of this experiment. `load` as model.load_policy."""
    device, dtype = device_and_dtype(spec)
    arguments = training.arguments(spec, run, device, dtype)
    policy = load(spec, tokens.where, device, dtype)
    if hasattr(policy, "peft_config"):
        console.print(_adapter(spec, policy), highlight=False, soft_wrap=True)
    made = build_context(spec, policy, arguments, device, dtype, tokens, console)
    return METHODS[spec.method.name].trainer(made)


def build_context(
    spec: Experiment, policy: Any, arguments: Any, device: Any, dtype: Any, tokens: Tokens, console: Console
) -> TrainContext:
    """All that a method's trainer is built from. How rows are laid out is known as soon as the model can be called."""
    passes = estimate.choose_micro_batch(
        spec,
        policy.config.get_text_config(),
        width=dtype.itemsize,
        free=free_memory(device),
        longest=max(data.max_sequence_length(row) for row in [*tokens.train, *tokens.heldout]),
        cuda=device.type == "cuda",
        processes=ranks.world_size(),
    )
    arguments.activation_checkpointing = passes.checkpointing
    made = TrainContext(
        spec,
        policy,
        tokens.tokenizer,
        tokens.train,
        tokens.heldout,
        tokens.available,
        arguments,
        device,
        dtype,
        passes.tokens,
        console,
    )
    sharded = spec.parallel.sharding in (Sharding.zero3, Sharding.fsdp) and ranks.world_size() > 1
    return made if sharded else made.complete()


def _adapter(spec: Experiment, policy: Any) -> str:
    """What is trained of an adapted model, and what its reference is."""
    (settings,) = policy.peft_config.values()
    dials, start = spec.parallel, spec.model.init_adapter
    base = "the base" if dials.quantization is Quantization.none else f"the base in {dials.quantization.name}"
    kind = f"{dials.adapter.name}, rank {settings.r}, alpha {settings.lora_alpha}, {count_parameters(policy, trainable_only=True):,} parameters"
    reference = (
        f"it goes on from {start}, and is the reference as it lies there"
        if start
        else f"the reference is {base}"
    )
    return f"adapter: {kind} on {base}; {reference}"
