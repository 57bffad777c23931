"""The engine: padding, batching and the head's shortcut change no number."""

import pytest
import torch

from alignment_lab import model as models
from alignment_lab.logprobs import IGNORED, completion, completion_logprobs, score, sequences
from alignment_lab.spec import Model, ModelSource, Shape

ROWS = [completion([5, 6, 7], [8, 9, 2]), completion([11], [12, 13, 14, 15, 2]), completion(list(range(20, 40)), [41, 2])]


@pytest.fixture(scope="module")
def tiny():
    spec = Model(name="tiny", source=ModelSource.random, shape=Shape(vocabulary=64))
    return models.load_model(spec, None)


def by_hand(model, ids, labels) -> float:
    """log softmax at every position of one unpadded row, picked where the next token is scored."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logits[place - 1, token].item() for place, token in enumerate(labels) if token != IGNORED)


def test_a_padded_batch_is_each_row_by_itself(tiny):
    found = completion_logprobs(tiny, sequences(ROWS))
    assert found.sums.tolist() == pytest.approx([by_hand(tiny, *row) for row in ROWS], abs=1e-4)
    assert found.lengths.tolist() == [3, 5, 2]


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_scoring_is_the_same_for_every_batch_size_and_in_the_rows_order(tiny, batch):
    found = score(tiny, ROWS, batch, torch.float32, lambda steps: steps)
    assert found.sums.tolist() == pytest.approx([by_hand(tiny, *row) for row in ROWS], abs=1e-4)
    assert found.lengths.tolist() == [3, 5, 2]


def test_padding_gets_no_gradient(tiny):
    """A row's gradient is the same alone and beside a longer one."""

    def gradient(rows):
        tiny.zero_grad()
        completion_logprobs(tiny, sequences(rows)).sums[0].backward()
        return tiny.model.layers[0].self_attn.q_proj.weight.grad.clone()

    torch.testing.assert_close(gradient(ROWS[:1]), gradient(ROWS), atol=1e-5, rtol=1e-4)


def test_scoring_leaves_the_mode_of_the_model_alone(tiny):
    tiny.train()
    score(tiny, ROWS, 2, torch.float32, lambda steps: steps)
    assert tiny.training
    tiny.eval()
