"""The reference: what its folder's name stands for, that it is asked once, and that a wrong store is never believed."""

import re
import shutil

import pytest
import torch
from rich.console import Console
from small_models import SEQUENCES, small
from small_runs import Workshop, step, trainer

from alignment_lab.actions import run_action
from alignment_lab.engine.layout import Engine
from alignment_lab.engine.logprobs import score_sequences
from alignment_lab.engine.packing import ScoredSequence
from alignment_lab.engine.reference import fetch_reference_logps, reference_folder, weights_digest
from alignment_lab.models.embedded import embedded_weights
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.run_directory import RunDirectory

PACKED = Engine(True, 1000)
ANSWERS = [ScoredSequence(one.prompt, one.answer) for one in SEQUENCES if one.prompt and one.labels is None]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A cache of the test's own with the embedded weights in it: the folder of its references."""
    weights = embedded_weights()
    (tmp_path / "cache" / "models").mkdir(parents=True)
    (tmp_path / "cache" / "models" / weights.name).symlink_to(weights.resolve())
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


@pytest.fixture
def workshop(composed, tokenizer, tmp_path, empty):
    return Workshop(composed, tokenizer, tmp_path)


# ---- the name


def adapted(model, *, trained: bool = False, **settings):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "down_proj"], **{"r": 4, "lora_alpha": 8, **settings})
    )
    if trained:
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.1)
    return wrapped


def test_a_model_has_one_name_however_it_is_held(tmp_path):
    """Twice made, saved and loaded, with another attention, in training, or under an adapter that does nothing yet."""
    plain = small("llama", dtype=torch.float32)
    name = weights_digest(plain)
    plain.save_pretrained(tmp_path)
    assert re.fullmatch("[0-9a-f]{64}", name)
    assert weights_digest(small("llama", dtype=torch.float32)) == name
    assert weights_digest(type(plain).from_pretrained(tmp_path)) == name
    assert weights_digest(small("llama", implementation="sdpa", dtype=torch.float32).train()) == name
    assert weights_digest(adapted(small("llama", dtype=torch.float32))) == name
    assert weights_digest(adapted(small("llama", dtype=torch.float32), r=2, lora_alpha=3)) == name


def test_what_changes_a_number_changes_the_name(tmp_path):
    """One weight by a rounding, the type of the weights, a constant of the config, a trained adapter, how strong it is."""

    def model(**settings):
        return small("llama", **({"dtype": torch.float32} | settings))

    nudged = model()
    with torch.no_grad():
        nudged.model.norm.weight[0] += 1e-7
    others = [
        nudged,
        model(dtype=torch.bfloat16),
        model(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        model(rms_norm_eps=1e-5),
        model(hidden_act="gelu"),
        adapted(model(), trained=True),
        adapted(model(), trained=True, lora_alpha=16),
        adapted(model(), trained=True, use_rslora=True),
        model(),
    ]
    assert len({weights_digest(one) for one in others}) == len(others)


def test_a_trained_adapter_has_its_name_after_loading(tmp_path):
    from peft import PeftModel

    trained = adapted(small("llama", dtype=torch.float32), trained=True)
    trained.save_pretrained(tmp_path)
    assert weights_digest(
        PeftModel.from_pretrained(small("llama", dtype=torch.float32), tmp_path)
    ) == weights_digest(trained)


def test_a_folder_is_named_by_weights_and_type():
    one, other = (reference_folder("ab" * 32, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert (one.name, other.name) == ("ab" * 16 + "-float32", "ab" * 16 + "-bfloat16")


# ---- who is asked


def fetched(model, where, sequences=ANSWERS):
    return fetch_reference_logps(model, sequences, PACKED, torch.float32, where, Console(quiet=True))


def test_what_is_fetched_is_what_the_model_says_and_then_what_was_stored(tmp_path):
    """In the order of the sequences; a second model that would say otherwise is not asked."""
    model = small("llama", dtype=torch.float32)
    true = score_sequences(model, ANSWERS, PACKED, torch.float32, iter)
    for asked, who in (
        (len(ANSWERS), model),
        (0, small("llama", dtype=torch.float32, initializer_range=0.2)),
    ):
        found, count = fetched(who, tmp_path / "store")
        assert count == asked
        for one, two in zip(found, true, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    backwards, count = fetched(model, tmp_path / "store", ANSWERS[::-1])
    assert count == 0
    assert all(torch.equal(one, two) for one, two in zip(backwards[::-1], found, strict=True))


def test_a_fresh_adapter_is_off_and_a_trained_one_is_the_reference(tmp_path):
    """Its A is not even multiplied while it does nothing; afterwards the bare base would be wrong by nats."""
    base = small("llama", dtype=torch.float32)
    true = score_sequences(base, ANSWERS, PACKED, torch.float32, iter)
    fresh = adapted(base)
    calls = []
    for name, module in fresh.named_modules():
        if "lora_A.default" in name:
            module.register_forward_hook(lambda *_: calls.append(1))
    found, _ = fetched(fresh, tmp_path / "fresh")
    assert calls == []
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(found, true, strict=True))
    trained = adapted(small("llama", dtype=torch.float32), trained=True)
    found, _ = fetched(trained, tmp_path / "trained")
    with_it = score_sequences(trained, ANSWERS, PACKED, torch.float32, iter)
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(found, with_it, strict=True))
    assert max(float((one - two).abs().max()) for one, two in zip(found, true, strict=True)) > 0.1


# ---- whole runs

ROWS = [
    {"prompt": f"How much is {n} and {n}?", "chosen": f"It is {2 * n}.", "rejected": f"Perhaps {n}."}
    for n in range(1, 21)
]
RUN = [
    "model=tiny",
    "parallel.device=cpu",
    "data=local",
    "model.shape.hidden=16",
    "eval.generations=0",
    "training.global_batch=8",
]


def test_a_sweep_asks_the_reference_once(composed, empty, tmp_path, write_rows, capsys, monkeypatch):
    """20 pairs, 18 of them to train on: 40 answers are asked for by the first run, and by no other that sees the same tokens.

    KTO sees the halves of the same pairs, and as many prompts with other answers. Another template, or another answer, is another question.
    """
    path = write_rows(ROWS)
    monkeypatch.setattr(
        "alignment_lab.report.render.run_page.write_run_page", lambda run: None
    )  # half of so short a run's time

    def said(*more: str) -> tuple[int, int]:
        run = RunDirectory(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        run_action(composed([*RUN, f"data.path={path}", *more]), run)
        return tuple(
            map(
                int,
                re.search(
                    r"reference: (\d+) of (\d+) answers", capsys.readouterr().out.replace("\n", " ")
                ).groups(),
            )
        )

    assert said() == (0, 40)
    for same in (
        "",
        "beta=0.3",
        "method=ipo",
        "training.seed=7",
        "training.learning_rate=1e-4",
        "training.micro_tokens=50",
        "method=aot",
    ):
        assert said(*same.split()) == (40, 40), same
    assert said("method=kto") == (40, 80)
    assert said("method=bco") == (40, 40)
    assert said("model.shape.layers=1") == (0, 40)
    assert said("model.chat_template=zephyr") == (0, 40)
    path.write_text(path.read_text().replace("Perhaps 20.", "Perhaps not 20."))
    assert said() == (39, 40)
    assert {folder.name.rpartition("-")[2] for folder in empty.iterdir()} == {"float32"}


# ---- a wrong store


@pytest.mark.parametrize("method", ["dpo", "ld_dpo", "ipo", "kto", "bco"])
def test_the_first_step_proves_the_store(method, workshop, empty):
    """A right one passes. One whose numbers other weights made, under the same name, is caught before an update, in a sentence."""
    context = workshop.context(method)
    step(trainer(context), is_first=True)
    (folder,) = empty.iterdir()
    shutil.rmtree(folder)
    other = workshop.policy(workshop.spec(method))
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.3)
    true = context.weights_digest
    sequences = [one for row in [*context.train_rows, *context.heldout_rows] for one in answers(row)]
    fetch_reference_logps(
        other,
        sequences,
        context.engine,
        context.dtype,
        reference_folder(true, context.dtype),
        Console(quiet=True),
    )
    made = trainer(context)
    with pytest.raises(UserError, match=r"are off by .* nats per token .* delete that folder"):
        step(made, is_first=True)
    step(made)  # later the policy has left its reference


def answers(row):
    """The answers of a pair, or of a labelled row."""
    return [
        ScoredSequence(row["prompt_ids"], row[name])
        for name in ("chosen_ids", "rejected_ids", "completion_ids")
        if name in row
    ]


def test_shards_of_another_folder_are_set_aside(workshop, empty):
    """Copied under this model's name they are not read: a shard knows which folder it was made for."""
    context = workshop.context("dpo")
    mine = reference_folder(context.weights_digest, context.dtype)
    stranger = mine.with_name("0" * 32 + "-float32")
    sequences = [one for row in [*context.train_rows, *context.heldout_rows] for one in answers(row)]
    fetch_reference_logps(
        context.model, sequences, context.engine, context.dtype, stranger, Console(quiet=True)
    )
    shutil.copytree(stranger, mine)
    text = trainer_text(context)
    assert "reference: 0 of" in text
    assert list(mine.glob("*.damaged"))
    assert trainer_text(context).count("reference: 24 of 24") == 1


def trainer_text(context) -> str:
    """What building the trainer says."""
    before = len(context.console.file.getvalue())
    trainer(context)
    return context.console.file.getvalue()[before:]
