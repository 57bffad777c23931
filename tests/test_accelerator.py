"""On an accelerator: every method computes in bfloat16 what the processor computes in float64, and nothing
waits for the device inside of a pass.
"""

import pytest
import torch
from small_runs import ContextFactory, make_trainer, perturb, run_step

from alignment_lab.methods import METHODS
from alignment_lab.models.loading import load_model
from alignment_lab.models.locate import locate_model
from alignment_lab.training.batch import collate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator"),
]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def on_device(composed, tokenizer, tmp_path_factory):
    """Contexts on the accelerator, computed in bfloat16."""
    folder = tmp_path_factory.mktemp("device")
    return ContextFactory(composed, tokenizer, folder, device=CUDA, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def on_processor(composed, tokenizer, tmp_path_factory):
    return ContextFactory(composed, tokenizer, tmp_path_factory.mktemp("processor"))


def plain_policy(contexts, method):
    """With the weights that it is initialized with: larger ones would show the rounding alone."""
    spec = contexts.spec(method)
    model = load_model(spec.model, locate_model(spec.model), score_head=not spec.method.generates)
    return model.to(contexts.device)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_that_of_the_processor(method, on_device, on_processor):
    """The loss to bfloat16's rounding; the direction of the gradient."""
    found = {}
    for contexts in (on_processor, on_device):
        trainer = make_trainer(contexts.create(method, policy=plain_policy(contexts, method)))
        perturb(trainer.model, 0.003)
        loss, gradients, _ = run_step(trainer)
        flat = torch.cat([gradients[name].double().cpu().flatten() for name in sorted(gradients)])
        found[contexts.device.type] = loss, flat
    (loss, gradient), (other_loss, other) = found["cpu"], found["cuda"]
    assert other_loss == pytest.approx(loss, rel=0.01)
    assert torch.nn.functional.cosine_similarity(gradient, other, dim=0) > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_a_pass_waits_for_nothing(method, on_device):
    """Torch says itself where a call waits for the device: nowhere from a batch's copy to its gradient."""
    trainer = make_trainer(on_device.create(method))
    batch = collate(trainer.objective, list(trainer.train_rows))
    trainer.backward(batch.to(CUDA))  # what is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.backward(batch.to(CUDA))
    finally:
        torch.cuda.set_sync_debug_mode("default")
