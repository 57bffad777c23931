"""The reference: what its folder's name depends on, that it is computed once, and that a wrong cache is
detected.
"""

import re
import shutil

import pytest
import torch
from rich.console import Console
from small_models import SEQUENCES, small_model
from small_runs import ContextFactory, make_trainer, run_step

from alignment_lab.actions import run_action
from alignment_lab.engine.layout import Engine
from alignment_lab.engine.logprobs import score_sequences
from alignment_lab.engine.packing import ScoredSequence
from alignment_lab.engine.reference import fetch_reference_logps, reference_folder, weights_digest
from alignment_lab.models.embedded import embedded_weights
from alignment_lab.models.facts import COSMETIC_ADAPTER_KEYS, adapter_facts
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.run_directory import RunDirectory

PACKED = Engine(True, 1000)
ANSWERS = [ScoredSequence(one.prompt, one.answer) for one in SEQUENCES if one.prompt and one.labels is None]


@pytest.fixture
def references_folder(tmp_path, monkeypatch):
    """A new cache that has the embedded weights; returns its folder of references."""
    weights = embedded_weights()
    (tmp_path / "cache" / "models").mkdir(parents=True)
    (tmp_path / "cache" / "models" / weights.name).symlink_to(weights.resolve())
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


@pytest.fixture
def contexts(composed, tokenizer, tmp_path, references_folder):
    return ContextFactory(composed, tokenizer, tmp_path)


# ---- the name


def with_adapter(model, *, trained: bool = False, **settings):
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


def test_a_model_has_one_digest_however_it_is_held(tmp_path):
    """Made twice, saved and loaded, with another attention, in training, or under an adapter that adds
    nothing yet.
    """
    plain = small_model("llama", dtype=torch.float32)
    name = weights_digest(plain)
    plain.save_pretrained(tmp_path)
    assert re.fullmatch("[0-9a-f]{64}", name)
    assert weights_digest(small_model("llama", dtype=torch.float32)) == name
    assert weights_digest(type(plain).from_pretrained(tmp_path)) == name
    assert weights_digest(small_model("llama", implementation="sdpa", dtype=torch.float32).train()) == name
    assert weights_digest(with_adapter(small_model("llama", dtype=torch.float32))) == name
    assert weights_digest(with_adapter(small_model("llama", dtype=torch.float32), r=2, lora_alpha=3)) == name


def test_what_changes_a_number_changes_the_digest(tmp_path):
    """One weight by 1e-7, the weights' dtype, a constant of the config, a trained adapter, its scale."""

    def model(**settings):
        return small_model("llama", **({"dtype": torch.float32} | settings))

    nudged = model()
    with torch.no_grad():
        nudged.model.norm.weight[0] += 1e-7
    others = [
        nudged,
        model(dtype=torch.bfloat16),
        model(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        model(rms_norm_eps=1e-5),
        model(hidden_act="gelu"),
        with_adapter(model(), trained=True),
        with_adapter(model(), trained=True, lora_alpha=16),
        with_adapter(model(), trained=True, use_rslora=True),
        # scales of single layers: the tensors have the same names and shapes
        with_adapter(model(), trained=True, alpha_pattern={"q_proj": 64}),
        with_adapter(model(), trained=True, alpha_pattern={"down_proj": 64}),
        with_adapter(model(), trained=True, rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 3}),
        with_adapter(model(), trained=True, use_dora=True),
        with_adapter(model(), trained=True, layers_to_transform=[0]),
        model(),
    ]
    assert len({weights_digest(model) for model in others}) == len(others)


def test_of_an_adapters_config_only_names_and_versions_are_left_out():
    """A key that a later version of peft adds counts, too."""
    from peft import LoraConfig

    config = LoraConfig(target_modules=["q_proj", "v_proj"]).to_dict() | {"of_a_later_version": None}
    facts = adapter_facts(config)
    counted = {key for key in config if adapter_facts(config | {key: "other"}) != facts}
    assert counted == config.keys() - set(COSMETIC_ADAPTER_KEYS)
    assert adapter_facts(config | {"target_modules": ["v_proj", "q_proj"]}) == facts


def test_a_trained_adapter_keeps_its_digest_after_loading(tmp_path):
    from peft import PeftModel

    trained = with_adapter(small_model("llama", dtype=torch.float32), trained=True)
    trained.save_pretrained(tmp_path)
    assert weights_digest(
        PeftModel.from_pretrained(small_model("llama", dtype=torch.float32), tmp_path)
    ) == weights_digest(trained)


def test_a_folder_is_named_by_digest_and_dtype():
    float32_folder, bfloat16_folder = (
        reference_folder("ab" * 32, dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert (float32_folder.name, bfloat16_folder.name) == ("ab" * 16 + "-float32", "ab" * 16 + "-bfloat16")


# ---- what is computed


def fetch(model, where, sequences=ANSWERS):
    return fetch_reference_logps(model, sequences, PACKED, torch.float32, where, Console(quiet=True))


def test_log_probabilities_are_the_models_first_and_then_the_stored_ones(tmp_path):
    """In the order of the sequences; a second model, which would give others, is not run."""
    model = small_model("llama", dtype=torch.float32)
    expected = score_sequences(model, ANSWERS, PACKED, torch.float32, iter)
    for num_scored, scoring_model in (
        (len(ANSWERS), model),
        (0, small_model("llama", dtype=torch.float32, initializer_range=0.2)),
    ):
        logps, count = fetch(scoring_model, tmp_path / "store")
        assert count == num_scored
        for actual, target in zip(logps, expected, strict=True):
            torch.testing.assert_close(actual, target, rtol=1e-5, atol=1e-5)
    backwards, count = fetch(model, tmp_path / "store", ANSWERS[::-1])
    assert count == 0
    assert all(torch.equal(actual, target) for actual, target in zip(backwards[::-1], logps, strict=True))


def test_a_new_adapter_is_disabled_and_a_trained_one_is_the_reference(tmp_path):
    """Its A is not even multiplied while B is zero; after training the bare base would be wrong by nats."""
    base = small_model("llama", dtype=torch.float32)
    expected = score_sequences(base, ANSWERS, PACKED, torch.float32, iter)
    fresh = with_adapter(base)
    calls = []
    for name, module in fresh.named_modules():
        if "lora_A.default" in name:
            module.register_forward_hook(lambda *_: calls.append(1))
    logps, _ = fetch(fresh, tmp_path / "fresh")
    assert calls == []
    assert all(
        torch.allclose(actual, target, atol=1e-5) for actual, target in zip(logps, expected, strict=True)
    )
    trained = with_adapter(small_model("llama", dtype=torch.float32), trained=True)
    logps, _ = fetch(trained, tmp_path / "trained")
    adapter_logps = score_sequences(trained, ANSWERS, PACKED, torch.float32, iter)
    assert all(
        torch.allclose(actual, target, atol=1e-5) for actual, target in zip(logps, adapter_logps, strict=True)
    )
    assert (
        max(float((actual - target).abs().max()) for actual, target in zip(logps, expected, strict=True))
        > 0.1
    )


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


def test_a_sweep_computes_the_reference_once(
    composed, references_folder, tmp_path, write_rows, capsys, monkeypatch
):
    """20 pairs, 18 of them to train on: the first run computes 40 answers, and no later run with the same
    tokens any.

    KTO has the halves of the same pairs, and as many prompts with other answers. Another chat template, or
    another answer, is computed again.
    """
    path = write_rows(ROWS)
    # half of so short a run's time
    monkeypatch.setattr("alignment_lab.report.render.run_page.write_run_page", lambda run: None)

    def count_cached(*overrides: str) -> tuple[int, int]:
        run = RunDirectory(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        run_action(composed([*RUN, f"data.path={path}", *overrides]), run)
        return tuple(
            map(
                int,
                re.search(
                    r"reference: (\d+) of (\d+) answers", capsys.readouterr().out.replace("\n", " ")
                ).groups(),
            )
        )

    assert count_cached() == (0, 40)
    for override in (
        "",
        "beta=0.3",
        "method=ipo",
        "training.seed=7",
        "training.learning_rate=1e-4",
        "training.micro_tokens=50",
        "method=aot",
    ):
        assert count_cached(*override.split()) == (40, 40), override
    assert count_cached("method=kto") == (40, 80)
    assert count_cached("method=bco") == (40, 40)
    assert count_cached("model.shape.layers=1") == (0, 40)
    assert count_cached("model.chat_template=zephyr") == (0, 40)
    path.write_text(path.read_text().replace("Perhaps 20.", "Perhaps not 20."))
    assert count_cached() == (39, 40)
    assert {folder.name.rpartition("-")[2] for folder in references_folder.iterdir()} == {"float32"}


# ---- a wrong cache


@pytest.mark.parametrize("method", ["dpo", "ld_dpo", "ipo", "kto", "bco"])
def test_the_first_step_checks_the_cache(method, contexts, references_folder):
    """A right cache passes.

    One with the numbers of other weights under the same name raises before an update.
    """
    context = contexts.create(method)
    run_step(make_trainer(context), is_first=True)
    (folder,) = references_folder.iterdir()
    shutil.rmtree(folder)
    other_model = contexts.policy(contexts.spec(method))
    with torch.no_grad():
        other_model.model.embed_tokens.weight.mul_(1.3)
    digest = context.weights_digest
    sequences = [
        sequence for row in [*context.train_rows, *context.heldout_rows] for sequence in answer_sequences(row)
    ]
    fetch_reference_logps(
        other_model,
        sequences,
        context.engine,
        context.dtype,
        reference_folder(digest, context.dtype),
        Console(quiet=True),
    )
    broken_trainer = make_trainer(context)
    with pytest.raises(UserError, match=r"are off by .* nats per token .* delete that folder"):
        run_step(broken_trainer, is_first=True)
    run_step(broken_trainer)  # later the policy has left its reference


def answer_sequences(row):
    """The answers of a pair, or of a labeled row."""
    return [
        ScoredSequence(row["prompt_ids"], row[name])
        for name in ("chosen_ids", "rejected_ids", "completion_ids")
        if name in row
    ]


def test_shards_of_another_folder_are_renamed(contexts, references_folder):
    """Copied into this model's folder they are not used: a shard's digest covers its folder's name."""
    context = contexts.create("dpo")
    own_folder = reference_folder(context.weights_digest, context.dtype)
    other_folder = own_folder.with_name("0" * 32 + "-float32")
    sequences = [
        sequence for row in [*context.train_rows, *context.heldout_rows] for sequence in answer_sequences(row)
    ]
    fetch_reference_logps(
        context.model, sequences, context.engine, context.dtype, other_folder, Console(quiet=True)
    )
    shutil.copytree(other_folder, own_folder)
    text = trainer_text(context)
    assert "reference: 0 of" in text
    assert list(own_folder.glob("*.damaged"))
    assert trainer_text(context).count("reference: 24 of 24") == 1


def trainer_text(context) -> str:
    """What building the trainer prints."""
    before = len(context.console.file.getvalue())
    make_trainer(context)
    return context.console.file.getvalue()[before:]
