"""An experiment's parts, loaded and put together: what a run trains, and what is made for a sweep's cells before they start.

Every process goes through all of it. Refuses to know what is measured, saved or reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from . import cluster, data, estimate, model, parallel, training
from .artifacts import RunDirectory
from .errors import UserError
from .method import METHODS, Setting
from .spec import Experiment, Format, Quantisation, Sharding

Row = dict[str, Any]


@dataclass(frozen=True)
class Tokens:
    """The rows that this run can see, as token ids; what was left out or cut is counted in `rows`."""

    rows: data.Rows
    where: Path  # the model lies
    tokenizer: Any
    train: list[Row]
    heldout: list[Row]
    available: int  # of the data, to train on; of texts, blocks are the rows


def tokenised(spec: Experiment, rows: data.Rows, where: Path, console: Console) -> Tokens:
    """Tokenise, or find it done in the cache. Raises UserError where no row is left."""
    tokenise, tokenizer = METHODS[spec.method.name].tokenise, model.load_tokenizer(spec.model, where)
    cluster.join(cpu=model.device_and_dtype(spec)[0].type == "cpu")
    with cluster.first_alone():
        digest, limit = model.tokenizer_digest(tokenizer), spec.data.max_length
        train, counts = data.cached(tokenise, tokenizer, digest, rows.train[: data.needed(spec)], limit)
        heldout, more = data.cached(
            tokenise, tokenizer, digest, data.first(rows.heldout, max(spec.eval.rows, spec.eval.generations)), limit
        )
    counts += more
    rows.truncated = counts.pop("truncated", 0)
    rows.dropped += counts
    if not train:
        raise UserError(f"data.max_length={spec.data.max_length}: no row fits; raise it, or give shorter rows.")
    found = Tokens(rows, where, tokenizer, train, heldout, len(train if spec.method.format is Format.text else rows.train))
    console.print(_counted(found), highlight=False, soft_wrap=True)
    return found


def _counted(tokens: Tokens) -> str:
    """What became of the rows, in a line: nobody should find out from a curve."""
    rows = tokens.rows
    left_out = "; ".join(f"{count} left out: {reason}" for reason, count in sorted(rows.dropped.items())) or "none left out"
    used = f"{len(tokens.train)} of {tokens.available} to train on, {len(tokens.heldout)} held out"
    return f"rows: {used}; {left_out}; {rows.truncated} cut at data.max_length"


def trainer(spec: Experiment, run: RunDirectory, tokens: Tokens, console: Console, load: Callable[..., Any] = model.load_policy) -> Any:
    """The method's trainer of this experiment. `load` as model.load_policy."""
    device, dtype = model.device_and_dtype(spec)
    arguments = training.arguments(spec, run, device, dtype)
    policy = load(spec, tokens.where, device, dtype)
    if hasattr(policy, "peft_config"):
        console.print(_adapter(spec, policy), highlight=False, soft_wrap=True)
    made = setting(spec, policy, arguments, device, dtype, tokens, console)
    return METHODS[spec.method.name].trainer(made)


def setting(spec: Experiment, policy: Any, arguments: Any, device: Any, dtype: Any, tokens: Tokens, console: Console) -> Setting:
    """All that a method's trainer is built from. How rows are laid out is known as soon as the model can be called."""
    passes = estimate.settle(
        spec,
        policy.config.get_text_config(),
        width=dtype.itemsize,
        free=model.free_bytes(device),
        longest=max(data.longest(row) for row in [*tokens.train, *tokens.heldout]),
        cuda=device.type == "cuda",
        processes=cluster.world(),
    )
    arguments.activation_checkpointing = passes.checkpointing
    made = Setting(
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
    sharded = spec.parallel.sharding in (Sharding.zero3, Sharding.fsdp) and cluster.world() > 1
    return made if sharded else made.complete()


def _adapter(spec: Experiment, policy: Any) -> str:
    """What is trained of an adapted model, and what its reference is."""
    (settings,) = policy.peft_config.values()
    dials, start = spec.parallel, spec.model.init_adapter
    base = "the base" if dials.quantisation is Quantisation.none else f"the base in {dials.quantisation.name}"
    kind = f"{dials.adapter.name}, rank {settings.r}, alpha {settings.lora_alpha}, {parallel.count(policy, trained=True):,} parameters"
    reference = f"it goes on from {start}, and is the reference as it lies there" if start else f"the reference is {base}"
    return f"adapter: {kind} on {base}; {reference}"
