"""The log-probability engine: a causal model and token ids in, log p(token | all before it) out.

Every method and every evaluation asks here. Sequences are packed into trees (see attention.py) where the model allows it exactly, and
right-padded where not; the head runs only where a scored token is predicted. Knows no objective and no row of data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cluster
from .attention import NAME, Layout, no_mask, why_not
from .data.pack import Scored, Tree, packed, padded, spread, trees

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 128  # of logits, worked on at a time: their float32 copies stay in the cache
Progress = Callable[[Sequence[Any]], Iterable[Any]]  # shows how far along a loop over these steps is


@dataclass(frozen=True)
class Batch:
    """N sequences laid out for one forward pass; S of their tokens are scored, sequence by sequence."""

    input_ids: Tensor  # [1, T] packed, [N, T] padded
    position_ids: Tensor  # of the same shape
    layout: Layout | None  # None: padded
    places: Tensor  # [S] where the token is predicted, in the flattened input
    targets: Tensor  # [S] the token
    offsets: Tensor  # [S] its place in the answer; below 0 in the prompt
    lengths: Tensor  # [N] scored tokens of each sequence
    ends: Tensor  # [N] each sequence's last token, in the flattened input
    members: Tensor  # [N] which of the planned sequences they are, rising
    spare: bool = False  # done again by a process that has no pack of its own left: it counts for nothing

    def to(self, device: torch.device | str, **_: Any) -> Batch:
        """The same on `device`."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def inputs(self) -> dict[str, Any]:
        """What a model's forward is given."""
        given: dict[str, Any] = {"input_ids": self.input_ids, "use_cache": False}
        if self.layout is None:
            return given
        return {**given, "position_ids": self.position_ids, "attention_mask": no_mask(self.input_ids.device), "layout": self.layout}


@dataclass(frozen=True)
class Engine:
    """How sequences are laid out for one model: packed or padded, at most `budget` tokens a forward pass."""

    packed: bool
    budget: int
    parts: int = 1  # processes that share the work
    device: torch.device | None = None  # where it is done; None: where the model's first weight lies

    def batches(self, sequences: Sequence[Scored]) -> list[Batch]:
        """All sequences, in as few forward passes as the budget allows; those with one prompt go together."""
        return [self._laid_out(sequences, pack) for pack in self._plan(sequences)]

    def share(self, sequences: Sequence[Scored]) -> list[Batch]:
        """This process's forward passes: as many as any other's, so that the last may be a spare one."""
        shares = cluster.even(self._plan(sequences))
        return [replace(self._laid_out(sequences, pack), spare=not counts) for pack, counts in shares]

    def _plan(self, sequences: Sequence[Scored]) -> list[list[Tree]]:
        planned = trees(sequences)
        if not planned:
            return []
        if self.parts == 1:
            return packed(planned, self.budget) if self.packed else padded(planned, self.budget)
        if self.packed:
            return spread(planned, self.budget, self.parts)
        width = sum(tree.longest * len(tree.members) for tree in planned)
        return padded(planned, min(self.budget, -(-width // self.parts)))

    def _laid_out(self, sequences: Sequence[Scored], pack: Sequence[Tree]) -> Batch:
        return _pack(sequences, pack) if self.packed else _pad(sequences, pack)


def choose(model: PreTrainedModel, longest: int, budget: int, device: torch.device | None = None) -> tuple[Engine, str | None]:
    """The engine that serves this model exactly, and why it pads where it does. Every process asks together.

    The model's own words are believed first, then a proof: a small tree must score as its sequences by themselves do.
    """
    engine = Engine(packed=False, budget=budget, parts=cluster.world(), device=device)
    asked = getattr(model.config, "_attn_implementation", None)
    if asked != NAME:
        return engine, f"model.attention={asked}"
    reason = why_not(model.config, longest) or _disproved(model, device)
    if reason:
        model.set_attn_implementation(_own(model))
    return replace(engine, packed=reason is None), reason


def _own(model: PreTrainedModel) -> str:
    """The attention that transformers would choose: some models ask for what SDPA does not compute."""
    return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"


def _disproved(model: PreTrainedModel, device: torch.device | None) -> str | None:
    """Whether a packed tree of random tokens scores otherwise than transformers' own attention has it, as a reason; None where not."""
    ids = torch.randint(min(1000, model.config.vocab_size), (24,), generator=torch.Generator().manual_seed(0)).tolist()
    probe = [Scored(ids[:8], ids[8:13]), Scored(ids[:8], ids[13:20]), Scored(ids[20:22], ids[22:])]
    half = next(model.parameters()).dtype.itemsize < 4
    try:
        with inference(model, torch.float32):
            one = _probed(model, probe, Engine(True, 1000, device=device))
            model.set_attn_implementation(_own(model))
            other = _probed(model, probe, Engine(False, 1000, device=device))
            model.set_attn_implementation(NAME)
    except (ValueError, TypeError, RuntimeError) as error:
        return f"its forward pass refuses packed rows ({' '.join(str(error).split())[:100]})"
    apart = max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
    return None if apart <= (0.3 if half else 1e-3) else f"packed and padded log-probabilities differ by {apart:.2g}"


def _probed(model: Any, probe: Sequence[Scored], engine: Engine) -> list[Tensor]:
    """Log-probabilities, or what a model with another head says of each sequence."""
    if model.can_generate():
        return _score(model, probe, engine)
    (batch,) = engine.batches(probe)
    return [scores_at_ends(model, batch.to(engine.device or model.device))[None]]


def _pack(sequences: Sequence[Scored], pack: Sequence[Tree]) -> Batch:
    """Trees behind each other; positions of every answer start behind its prompt."""
    ids: list[int] = []
    positions: list[int] = []
    starts: dict[int, tuple[int, int]] = {}  # member -> where its prompt and its answer start
    for tree in pack:
        prompt = len(ids)
        ids += sequences[tree.members[0]].prompt
        positions += range(tree.prompt)
        for member in tree.members:
            starts[member] = prompt, len(ids)
            ids += sequences[member].answer
            positions += range(tree.prompt, len(sequences[member]))
    layout = Layout(tuple((tree.prompt, tuple(len(sequences[member].answer) for member in tree.members)) for tree in pack))
    return _batch(sequences, [ids], [positions], layout, starts)


def _pad(sequences: Sequence[Scored], pack: Sequence[Tree]) -> Batch:
    """Right-padded: under causal attention no real token sees the padding, so any id will do and no mask is needed."""
    members = sorted(member for tree in pack for member in tree.members)
    width = max(len(sequences[member]) for member in members)
    rows = [(sequences[member].prompt + sequences[member].answer + [0] * width)[:width] for member in members]
    starts = {member: (row * width, row * width + len(sequences[member].prompt)) for row, member in enumerate(members)}
    return _batch(sequences, rows, [list(range(width))] * len(rows), None, starts)


def _batch(
    sequences: Sequence[Scored], ids: list[list[int]], positions: list[list[int]], layout: Layout | None, starts: dict[int, tuple[int, int]]
) -> Batch:
    """What both layouts have in common: which tokens are scored, and where each one is predicted."""
    places: list[int] = []
    targets: list[int] = []
    offsets: list[int] = []
    lengths, ends = [], []
    members = sorted(starts)
    for member in members:
        sequence, (prompt_start, answer_start) = sequences[member], starts[member]
        size = len(sequence.prompt)
        where = [*range(prompt_start, prompt_start + size), *range(answer_start, answer_start + len(sequence.answer))]
        scored = sequence.scored()
        places += [where[place - 1] for place, _ in scored]
        targets += [token for _, token in scored]
        offsets += [place - size for place, _ in scored]
        lengths.append(len(scored))
        ends.append(where[-1])
    found: Any = (torch.tensor(values, dtype=torch.long) for values in (places, targets, offsets, lengths, ends, members))
    return Batch(torch.tensor(ids), torch.tensor(positions), layout, *found)


@dataclass(frozen=True)
class Seen:
    """What a model says of N sequences: log p of each of their S scored tokens, sequence by sequence."""

    logps: Tensor  # [S] nats, float32 or better
    offsets: Tensor  # [S] the token's place in the answer; below 0 in the prompt
    lengths: Tensor  # [N] scored tokens of each sequence
    members: Tensor  # [N] which of the planned sequences they are
    log_squares: Tensor | None = None  # [S] log sum_v p_v^2, where asked for
    likeliest: Tensor | None = None  # [S] whether the token was the likeliest one, where asked for

    @property
    def owners(self) -> Tensor:
        """[S] which of the N sequences each scored token belongs to."""
        return torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.lengths)

    def sums(self, values: Tensor) -> Tensor:
        """Sum over the scored tokens of each sequence: [S] -> [N]."""
        return torch.segment_reduce(values, "sum", lengths=self.lengths)

    def detached(self) -> Seen:
        """The same without its gradient."""
        return replace(self, logps=self.logps.detach())

    def to(self, device: torch.device | str) -> Seen:
        """The same on `device`."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)})

    @staticmethod
    def join(parts: Sequence[Seen]) -> Seen:
        """Several as one."""
        found: dict[str, Any] = {}
        for field in fields(Seen):
            values = [getattr(part, field.name) for part in parts]
            found[field.name] = None if values[0] is None else torch.cat(values)
        return Seen(**found)


def token_logprobs(model: PreTrainedModel, batch: Batch, *, log_squares: bool = False, likeliest: bool = False) -> Seen:
    """log p of every scored token, and what else was asked for. Only `logps` has a gradient."""
    if batch.layout is not None:
        logits = model(**batch.inputs(), logits_to_keep=batch.places).logits.squeeze(0)  # [S, V]
    else:
        width = batch.input_ids.shape[1]
        rows, columns = batch.places // width, batch.places % width
        first = int(columns.min())  # before it, no row has a scored token
        kept = torch.arange(first, width, device=columns.device)
        logits = model(**batch.inputs(), logits_to_keep=kept).logits[rows, columns - first]  # [S, V]
    logps, squares, top = _LogSoftmaxAt.apply(logits, batch.targets, log_squares, likeliest)
    return Seen(logps, batch.offsets, batch.lengths, batch.members, squares, top)


def scores_at_ends(model: Any, batch: Batch) -> Tensor:
    """What a reward model's head says at each sequence's end: [N].

    The whole model is called, as wrappers for several processes want it; its own choice of a token does not know of packs, so that the
    head's output is taken where it arises.
    """
    heads: list[Tensor] = []
    plain = next(module for module in model.modules() if hasattr(module, "score") and hasattr(module, "config"))
    taken = plain.score.register_forward_hook(lambda _module, _given, said: heads.append(said))
    try:
        model(**batch.inputs())
    finally:
        taken.remove()
    return heads[-1].flatten()[batch.ends]


class _LogSoftmaxAt(torch.autograd.Function):
    """log softmax(logits)[targets], a few rows at a time; going back, the logits' memory becomes their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, log_squares: bool, likeliest: bool) -> tuple[Tensor | None, ...]:
        exact = torch.promote_types(logits.dtype, torch.float32)
        logps, normalizers = (torch.empty(len(targets), dtype=exact, device=logits.device) for _ in range(2))
        squares = torch.empty_like(logps) if log_squares else None
        top = torch.empty(len(targets), dtype=torch.bool, device=logits.device) if likeliest else None
        for start in range(0, len(targets), ROWS):
            here = slice(start, start + ROWS)
            rows = logits[here].to(exact)
            normalizers[here] = rows.logsumexp(-1)
            logps[here] = rows.gather(-1, targets[here, None])[:, 0] - normalizers[here]
            if squares is not None:
                squares[here] = (2 * rows).logsumexp(-1) - 2 * normalizers[here]
            if top is not None:
                top[here] = rows.argmax(-1) == targets[here]
        ctx.save_for_backward(logits, targets, normalizers)
        ctx.spent = False
        ctx.mark_non_differentiable(*(extra for extra in (squares, top) if extra is not None))
        return logps, squares, top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        logits, targets, normalizers = ctx.saved_tensors
        assert not ctx.spent, "the logits are gone: a graph through log-probabilities goes back once"
        ctx.spent = True
        for start in range(0, len(targets), ROWS):
            here = slice(start, start + ROWS)
            rows = (logits[here].to(normalizers.dtype) - normalizers[here, None]).exp_().mul_(-gradient[here, None])
            rows.scatter_add_(1, targets[here, None], gradient[here, None])
            logits[here] = rows
        return logits.detach(), None, None, None


@contextmanager
def inference(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """No gradients, evaluation mode, computing in `dtype`; the model's mode is given back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            yield
    finally:
        model.train(training)


def score(model: PreTrainedModel, sequences: Sequence[Scored], engine: Engine, dtype: torch.dtype, progress: Progress) -> list[Tensor]:
    """Log-probabilities of the scored tokens of each sequence, in the sequences' order, on the CPU: [tokens] nats each.

    Of several processes each scores its share and has all of them in the end: they must ask together.
    """
    with inference(model, dtype):
        return _score(model, sequences, engine, progress)


def _score(model: PreTrainedModel, sequences: Sequence[Scored], engine: Engine, progress: Progress = iter) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    for batch in progress(engine.share(sequences)):
        tokens = token_logprobs(model, batch.to(engine.device or model.device)).logps.cpu().split(batch.lengths.tolist())
        found |= zip(batch.members.tolist(), tokens, strict=True)
    everyone = {member: values for part in cluster.gathered(found) for member, values in part.items()}
    return [everyone[member] for member in range(len(sequences))]
