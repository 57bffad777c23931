"""The engine's parts: how sequences lie in a batch, sums over them, and the log softmax that spends its logits."""

from itertools import chain

import pytest
import torch
from small_models import SEQUENCES, small

from alignment_lab.engine.layout import Engine
from alignment_lab.engine.logprobs import LOGIT_ROWS, TokenLogprobs, _TargetLogSoftmax, token_logprobs
from alignment_lab.engine.packing import IGNORE_INDEX, ScoredSequence

PAIR = [ScoredSequence([5, 6], [7, 8]), ScoredSequence([5, 6], [9])]


# ---- batches


def test_a_pair_in_one_row():
    """[5 6 | 7 8 | 9]: both answers start at position 2; their first tokens are predicted at the prompt's last one."""
    (batch,) = Engine(True, 100).batches(PAIR)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.layout.trees == ((2, (2, 1)),)
    assert batch.predict_at.tolist() == [1, 2, 1]
    assert batch.targets.tolist() == [7, 8, 9]
    assert batch.offsets.tolist() == [0, 1, 0]
    assert (batch.lengths.tolist(), batch.last_positions.tolist(), batch.sequence_ids.tolist()) == ([2, 1], [3, 4], [0, 1])


def test_the_same_pair_padded():
    """[5 6 7 8] and [5 6 9 0]: what is behind an answer is never seen, so any id will do."""
    (batch,) = Engine(False, 100).batches(PAIR)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]]
    assert batch.layout is None
    assert batch.predict_at.tolist() == [1, 2, 5]
    assert batch.targets.tolist() == [7, 8, 9]
    assert (batch.lengths.tolist(), batch.last_positions.tolist(), batch.sequence_ids.tolist()) == ([2, 1], [3, 6], [0, 1])


@pytest.mark.parametrize("packed", [True, False])
def test_labels_say_what_is_scored(packed):
    """A text's first token is predicted by nothing; a label in the prompt has an offset below 0."""
    scored = [
        ScoredSequence([], [3, 4, 5]),
        ScoredSequence([6, 7], [8], labels=[6, 7, 8]),
        ScoredSequence([6, 7], [8, 9], labels=[IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 9]),
    ]
    batches = Engine(packed, 100).batches(scored)
    assert len(batches) == 1
    assert batches[0].lengths.tolist() == [2, 2, 1]
    assert batches[0].targets.tolist() == [4, 5, 7, 8, 9]
    assert batches[0].offsets.tolist() == [1, 2, -1, 0, 1]


@pytest.mark.parametrize("packed", [True, False])
def test_batches_hold_every_sequence_once_with_its_members_rising(packed):
    for budget in (1, 12, 40, 1000):
        batches = Engine(packed, budget).batches(SEQUENCES)
        members = [batch.sequence_ids.tolist() for batch in batches]
        assert all(found == sorted(found) for found in members)
        assert sorted(chain(*members)) == list(range(len(SEQUENCES)))
        for batch in batches:
            last = batch.input_ids.flatten()[batch.last_positions].tolist()
            assert last == [SEQUENCES[member].answer[-1] for member in batch.sequence_ids.tolist()]


def test_nothing_gives_no_batch():
    assert Engine(True, 10).batches([]) == Engine(False, 10).batches([]) == []


@pytest.mark.parametrize("packed", [True, False])
def test_a_text_of_one_token_is_silent_beside_others(packed):
    """It has nothing to predict: no length, and a sum of 0."""
    model = small("llama")
    (batch,) = Engine(packed, 100).batches([*PAIR, ScoredSequence([], [17])])
    seen = token_logprobs(model, batch)
    assert seen.lengths.tolist() == [2, 1, 0]
    assert seen.sum_by_sequence(seen.logps)[2] == 0


def test_the_head_runs_only_where_a_scored_token_is_predicted():
    """A tree of 20 + 2 + 1 tokens, three of them scored: three rows of logits, and not 23."""
    model = small("llama", dtype=torch.float32)
    rows = []
    model.lm_head.register_forward_hook(lambda module, given, output: rows.append(output.shape[:-1].numel()))
    (batch,) = Engine(True, 100).batches(
        [ScoredSequence(list(range(20)), [21, 22]), ScoredSequence(list(range(20)), [23])]
    )
    token_logprobs(model, batch)
    assert rows == [3]


def test_a_batch_moves_with_all_its_tensors():
    (batch,) = Engine(True, 100).batches(PAIR)
    moved = batch.to("meta")
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {
        "meta"
    }
    assert moved.layout is batch.layout


# ---- what was seen


def seen(logps, lengths, **more):
    lengths = torch.tensor(lengths)
    return TokenLogprobs(
        torch.tensor(logps),
        torch.zeros(len(logps), dtype=torch.long),
        lengths,
        torch.arange(len(lengths)),
        **more,
    )


def test_sums_and_owners():
    """Three sequences of 2, 0 and 1 tokens."""
    found = seen([1.0, 2.0, 4.0], [2, 0, 1])
    assert found.sum_by_sequence(found.logps).tolist() == [3.0, 0.0, 4.0]
    assert found.segment_ids.tolist() == [0, 0, 2]


def test_sums_have_a_gradient():
    found = seen([1.0, 2.0, 4.0], [2, 1])
    found.logps.requires_grad_()
    (found.sum_by_sequence(found.logps) * torch.tensor([3.0, 5.0])).sum().backward()
    assert found.logps.grad.tolist() == [3.0, 3.0, 5.0]


def test_several_are_joined_in_their_order():
    found = TokenLogprobs.cat([seen([1.0, 2.0], [2]), seen([4.0], [1], is_argmax=None)])
    assert found.logps.tolist() == [1.0, 2.0, 4.0]
    assert found.lengths.tolist() == [2, 1]
    assert found.is_argmax is None
    likely = [
        seen([1.0], [1], is_argmax=torch.tensor([True])),
        seen([1.0], [1], is_argmax=torch.tensor([False])),
    ]
    assert TokenLogprobs.cat(likely).is_argmax.tolist() == [True, False]


# ---- log softmax


def drawn(rows: int, dtype=torch.float64):
    """Logits of 11 tokens and a target for each row; more rows than are worked on at a time."""
    generator = torch.Generator().manual_seed(rows)
    logits = 3 * torch.randn(rows, 11, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.randint(11, (rows,), generator=generator)


@pytest.mark.parametrize("rows", [0, 1, 5, LOGIT_ROWS, LOGIT_ROWS + 1, 3 * LOGIT_ROWS - 7])
def test_log_softmax_and_its_gradient_are_torchs(rows):
    """The logits that it is given are a result (x * 1), as a head's are: going back spends their memory."""
    logits, targets = drawn(rows)
    weights = torch.linspace(-2, 3, rows, dtype=torch.float64)
    logps, squares, is_argmax = _TargetLogSoftmax.apply(logits * 1, targets, True, True)
    (logps * weights).sum().backward()
    found = logits.grad.clone()
    logits.grad = None
    true = logits.log_softmax(-1)
    (true.gather(-1, targets[:, None])[:, 0] * weights).sum().backward()
    torch.testing.assert_close(logps, true.gather(-1, targets[:, None])[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, logits.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(squares, true.exp().square().sum(-1).log(), rtol=1e-12, atol=1e-12)
    assert is_argmax.tolist() == (true.argmax(-1) == targets).tolist()
    assert logps.requires_grad and not squares.requires_grad and not is_argmax.requires_grad


def test_its_gradient_is_the_slope_of_its_value():
    """Central differences in float64 along every single logit (torch's gradcheck goes back many times, which is refused)."""
    logits, targets = drawn(4)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)

    def value(at):
        return (_TargetLogSoftmax.apply(at * 1, targets, False, False)[0] * weights).sum()

    value(logits).backward()
    for place in range(logits.numel()):
        step = (
            torch.zeros(logits.numel(), dtype=torch.float64)
            .index_fill(0, torch.tensor(place), 1e-5)
            .view_as(logits)
        )
        with torch.no_grad():
            slope = (value(logits + step) - value(logits - step)) / 2e-5
        assert slope.item() == pytest.approx(logits.grad.flatten()[place].item(), abs=1e-9)


def test_what_was_not_asked_for_is_not_computed():
    logits, targets = drawn(3)
    assert _TargetLogSoftmax.apply(logits * 1, targets, False, False)[1:] == (None, None)


def test_it_goes_back_once():
    """The logits' memory became their gradient: a second time would be wrong, and is refused instead."""
    logits, targets = drawn(3)
    logps = _TargetLogSoftmax.apply(logits * 1, targets, False, False)[0]
    logps.sum().backward(retain_graph=True)
    with pytest.raises((AssertionError, RuntimeError)):
        logps.sum().backward()


def test_its_gradient_has_no_gradient():
    logits, targets = drawn(3)
    logps = _TargetLogSoftmax.apply(logits * 1, targets, False, False)[0]
    (slope,) = torch.autograd.grad(logps.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError):
        slope.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_log_probabilities_are_float32_whatever_the_logits(dtype):
    """Normalized in float32: of 16-bit logits nothing more is lost than they had lost already. The gradient has the logits' type."""
    logits, targets = drawn(6, dtype)
    logps, squares, _ = _TargetLogSoftmax.apply(logits * 1, targets, True, False)
    assert logps.dtype is squares.dtype is torch.float32
    true = logits.detach().double().log_softmax(-1)
    torch.testing.assert_close(logps.double(), true.gather(-1, targets[:, None])[:, 0], rtol=1e-6, atol=1e-6)
    logps.sum().backward()
    slope = torch.nn.functional.one_hot(targets, 11) - true.exp()
    torch.testing.assert_close(
        logits.grad.double(), slope, rtol=0, atol={torch.float32: 1e-6}.get(dtype, 4e-3)
    )


def test_logits_of_any_size_stay_finite():
    """A token whose logit is 1e4 above the others has log-probability 0, the others -1e4."""
    logits = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    logps, squares, _ = _TargetLogSoftmax.apply(logits * 1, torch.tensor([0, 1]), True, False)
    assert logps.tolist() == [0.0, -1e4]
    assert squares.tolist() == [0.0, 0.0]
    logps.sum().backward()
    assert logits.grad.tolist() == [[0.0, 0.0], [-1.0, 1.0]]
