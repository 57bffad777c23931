"""The engine's parts: positions in a batch, sums over sequences, and the log softmax that reuses its logits'
memory.
"""

from itertools import chain

import pytest
import torch
from small_models import SEQUENCES, small_model

from alignment_lab.engine.layout import Engine
from alignment_lab.engine.logprobs import LOGIT_ROWS, TokenLogprobs, _TargetLogSoftmax, token_logprobs
from alignment_lab.engine.packing import IGNORE_INDEX, ScoredSequence

PAIR = [ScoredSequence([5, 6], [7, 8]), ScoredSequence([5, 6], [9])]


# ---- batches


def test_a_pair_in_one_row():
    """[5 6 | 7 8 | 9]: both answers start at position 2.

    Their first tokens are predicted at the prompt's last one.
    """
    (batch,) = Engine(True, 100).batches(PAIR)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.layout.trees == ((2, (2, 1)),)
    assert batch.predict_at.tolist() == [1, 2, 1]
    assert batch.targets.tolist() == [7, 8, 9]
    assert batch.offsets.tolist() == [0, 1, 0]
    assert (batch.lengths.tolist(), batch.last_positions.tolist(), batch.sequence_ids.tolist()) == (
        [2, 1],
        [3, 4],
        [0, 1],
    )


def test_the_same_pair_padded():
    """[5 6 7 8] and [5 6 9 0]: padding is never attended to, so any id will do."""
    (batch,) = Engine(False, 100).batches(PAIR)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]]
    assert batch.layout is None
    assert batch.predict_at.tolist() == [1, 2, 5]
    assert batch.targets.tolist() == [7, 8, 9]
    assert (batch.lengths.tolist(), batch.last_positions.tolist(), batch.sequence_ids.tolist()) == (
        [2, 1],
        [3, 6],
        [0, 1],
    )


@pytest.mark.parametrize("packed", [True, False])
def test_labels_say_what_is_scored(packed):
    """Nothing predicts the first token of a text; a label in the prompt has a negative offset."""
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
def test_batches_hold_every_sequence_once_in_ascending_order(packed):
    for max_tokens in (1, 12, 40, 1000):
        batches = Engine(packed, max_tokens).batches(SEQUENCES)
        batch_indices = [batch.sequence_ids.tolist() for batch in batches]
        assert all(indices == sorted(indices) for indices in batch_indices)
        assert sorted(chain(*batch_indices)) == list(range(len(SEQUENCES)))
        for batch in batches:
            last_tokens = batch.input_ids.flatten()[batch.last_positions].tolist()
            assert last_tokens == [SEQUENCES[index].answer[-1] for index in batch.sequence_ids.tolist()]


def test_no_sequences_give_no_batches():
    assert Engine(True, 10).batches([]) == Engine(False, 10).batches([]) == []


@pytest.mark.parametrize("packed", [True, False])
def test_a_text_of_one_token_has_no_scored_tokens(packed):
    """Its length and its sum are 0."""
    model = small_model("llama")
    (batch,) = Engine(packed, 100).batches([*PAIR, ScoredSequence([], [17])])
    logprobs = token_logprobs(model, batch)
    assert logprobs.lengths.tolist() == [2, 1, 0]
    assert logprobs.sum_by_sequence(logprobs.logps)[2] == 0


def test_the_head_runs_only_where_a_scored_token_is_predicted():
    """A tree of 20 + 2 + 1 tokens, three of them scored: three rows of logits, and not 23."""
    model = small_model("llama", dtype=torch.float32)
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
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


# ---- token log-probabilities


def make_logprobs(logps, lengths, **options):
    lengths = torch.tensor(lengths)
    return TokenLogprobs(
        torch.tensor(logps),
        torch.zeros(len(logps), dtype=torch.long),
        lengths,
        torch.arange(len(lengths)),
        **options,
    )


def test_sums_and_segment_ids():
    """Three sequences of 2, 0 and 1 tokens."""
    logprobs = make_logprobs([1.0, 2.0, 4.0], [2, 0, 1])
    assert logprobs.sum_by_sequence(logprobs.logps).tolist() == [3.0, 0.0, 4.0]
    assert logprobs.segment_ids.tolist() == [0, 0, 2]


def test_sums_have_a_gradient():
    logprobs = make_logprobs([1.0, 2.0, 4.0], [2, 1])
    logprobs.logps.requires_grad_()
    (logprobs.sum_by_sequence(logprobs.logps) * torch.tensor([3.0, 5.0])).sum().backward()
    assert logprobs.logps.grad.tolist() == [3.0, 3.0, 5.0]


def test_several_are_concatenated_in_order():
    joined = TokenLogprobs.cat([make_logprobs([1.0, 2.0], [2]), make_logprobs([4.0], [1], is_argmax=None)])
    assert joined.logps.tolist() == [1.0, 2.0, 4.0]
    assert joined.lengths.tolist() == [2, 1]
    assert joined.is_argmax is None
    parts = [
        make_logprobs([1.0], [1], is_argmax=torch.tensor([True])),
        make_logprobs([1.0], [1], is_argmax=torch.tensor([False])),
    ]
    assert TokenLogprobs.cat(parts).is_argmax.tolist() == [True, False]


# ---- log softmax


def random_logits(rows: int, dtype=torch.float64):
    """Logits over 11 tokens, and a target for each row."""
    generator = torch.Generator().manual_seed(rows)
    logits = 3 * torch.randn(rows, 11, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.randint(11, (rows,), generator=generator)


@pytest.mark.parametrize("rows", [0, 1, 5, LOGIT_ROWS, LOGIT_ROWS + 1, 3 * LOGIT_ROWS - 7])
def test_log_softmax_and_its_gradient_equal_torchs(rows):
    """Its logits are a result (x * 1), as a head's are: backward overwrites their memory."""
    logits, targets = random_logits(rows)
    weights = torch.linspace(-2, 3, rows, dtype=torch.float64)
    logps, squares, is_argmax = _TargetLogSoftmax.apply(logits * 1, targets, True, True)
    (logps * weights).sum().backward()
    gradient = logits.grad.clone()
    logits.grad = None
    expected = logits.log_softmax(-1)
    (expected.gather(-1, targets[:, None])[:, 0] * weights).sum().backward()
    torch.testing.assert_close(logps, expected.gather(-1, targets[:, None])[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(squares, expected.exp().square().sum(-1).log(), rtol=1e-12, atol=1e-12)
    assert is_argmax.tolist() == (expected.argmax(-1) == targets).tolist()
    assert logps.requires_grad and not squares.requires_grad and not is_argmax.requires_grad


def test_its_gradient_equals_finite_differences():
    """Central differences in float64 along every logit.

    torch's gradcheck runs backward many times, which is refused.
    """
    logits, targets = random_logits(4)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)

    def value(point):
        return (_TargetLogSoftmax.apply(point * 1, targets, False, False)[0] * weights).sum()

    value(logits).backward()
    for index in range(logits.numel()):
        step = (
            torch.zeros(logits.numel(), dtype=torch.float64)
            .index_fill(0, torch.tensor(index), 1e-5)
            .view_as(logits)
        )
        with torch.no_grad():
            slope = (value(logits + step) - value(logits - step)) / 2e-5
        assert slope.item() == pytest.approx(logits.grad.flatten()[index].item(), abs=1e-9)


def test_what_is_not_requested_is_not_computed():
    logits, targets = random_logits(3)
    assert _TargetLogSoftmax.apply(logits * 1, targets, False, False)[1:] == (None, None)


def test_backward_works_once():
    """The logits' memory became their gradient: a second backward would be wrong, and raises."""
    logits, targets = random_logits(3)
    logps = _TargetLogSoftmax.apply(logits * 1, targets, False, False)[0]
    logps.sum().backward(retain_graph=True)
    with pytest.raises((AssertionError, RuntimeError)):
        logps.sum().backward()


def test_it_has_no_second_derivative():
    logits, targets = random_logits(3)
    logps = _TargetLogSoftmax.apply(logits * 1, targets, False, False)[0]
    (slope,) = torch.autograd.grad(logps.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError):
        slope.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_log_probabilities_are_float32_whatever_the_logits(dtype):
    """Normalized in float32: 16-bit logits lose no more precision. The gradient has the logits' dtype."""
    logits, targets = random_logits(6, dtype)
    logps, squares, _ = _TargetLogSoftmax.apply(logits * 1, targets, True, False)
    assert logps.dtype is squares.dtype is torch.float32
    expected = logits.detach().double().log_softmax(-1)
    torch.testing.assert_close(
        logps.double(), expected.gather(-1, targets[:, None])[:, 0], rtol=1e-6, atol=1e-6
    )
    logps.sum().backward()
    gradient = torch.nn.functional.one_hot(targets, 11) - expected.exp()
    torch.testing.assert_close(
        logits.grad.double(), gradient, rtol=0, atol={torch.float32: 1e-6}.get(dtype, 4e-3)
    )


def test_logits_of_any_size_stay_finite():
    """A token whose logit is 1e4 above the others has log-probability 0, the others -1e4."""
    logits = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    logps, squares, _ = _TargetLogSoftmax.apply(logits * 1, torch.tensor([0, 1]), True, False)
    assert logps.tolist() == [0.0, -1e4]
    assert squares.tolist() == [0.0, 0.0]
    logps.sum().backward()
    assert logits.grad.tolist() == [[0.0, 0.0], [-1.0, 1.0]]
