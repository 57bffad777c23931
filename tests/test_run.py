"""Whole runs: every file of the run directory, the first loss, invariances, and TRL as the oracle."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from alignment_lab import data, embedded, model
from alignment_lab.artifacts import RunDirectory, read_json, write_json
from alignment_lab.data import tokenise
from alignment_lab.errors import UserError
from alignment_lab.logprobs import Sequences, completion_logprobs
from alignment_lab.losses import PairLogprobs, dpo
from alignment_lab.method.preference import collate
from alignment_lab.run import execute
from alignment_lab.training import GlobalBatches

FILES = ["metrics.jsonl", "provenance.json", "report.html", "report.json", "run.json", "samples.jsonl", "spec.yaml"]
TINY = [
    "model=tiny",
    "parallel.device=cpu",
    "training.max_steps=3",
    "training.global_batch=4",
    "eval.rows=6",
    "eval.generations=3",
    "eval.max_new_tokens=8",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, composed):
    """One short run of each method, made when first asked for."""
    made: dict[str, RunDirectory] = {}

    def make(method: str) -> RunDirectory:
        if method not in made:
            made[method] = RunDirectory(tmp_path_factory.mktemp(method) / "run")
            execute(composed([*TINY, f"method={method}", "training.save_steps=2"]), made[method])
        return made[method]

    return make


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_run_leaves_every_file(finished, method):
    run = finished(method)
    assert [name for name in FILES if not (run.path / name).is_file()] == []
    assert {path.name for path in run.path.iterdir()} == {*FILES, "checkpoints", "model", "tensorboard"}
    assert run.state() | {"state": "finished", "attempts": 1, "error": None} == run.state()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert [row["step"] for row in run.metrics() if "loss" in row] == [1, 2, 3]
    assert len(run.samples()) == 3
    assert {"prompt", "expected", "before", "after", "before_correct", "after_correct"} == run.samples()[0].keys()
    report = run.report()
    assert report["steps"] == 3
    assert report["rows"]["train"] == 12
    assert report["rows"]["available"] == 1024
    assert run.metrics()[-1]["epoch"] == round(12 / 1024, 4)
    assert report["metrics"]["eval_loss"]["after"]["n"] == 6
    assert report["id"] == run.state()["id"]
    assert any((run.path / "tensorboard").iterdir())


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_provenance_names_code_packages_machine_and_content(finished, method):
    found = read_json(finished(method).provenance_file)
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0] or "+" in found["packages"]["torch"]
    assert all(len(digest) == 64 for digest in found["content"].values())
    assert found["content"].keys() == {"model", "data", "tokenizer"}
    assert found["hardware"]["cores"] > 0


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_saved_model_loads_in_plain_transformers(finished, method):
    """Weights moved from where they started, nothing is missing, and generation stops where the template does."""
    run = finished(method)
    loaded, info = AutoModelForCausalLM.from_pretrained(run.model, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert tokenizer.chat_template
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in loaded.generation_config.eos_token_id
    start = model.content_digest(loaded)
    assert start != read_json(run.provenance_file)["content"]["model"]


def test_the_first_dpo_loss_is_log_2(finished):
    run = finished("dpo")
    first = run.metrics()[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    before = run.report()["metrics"]
    assert before["eval_loss"]["before"]["value"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["eval_rewards/accuracies"]["before"]["value"] == 0.5
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"} <= first.keys()


def test_dpo_equals_trl_on_the_same_batch(composed, tokenizer, tmp_path):
    """TRL tokenises, batches and scores three rows with a policy that is not its reference; we score the ids that it made."""
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in data.load(composed([])).train[:3]]
    spec = composed(["model=tiny"]).model
    reference, policy = (model.load_model(spec, embedded.weights()) for _ in range(2))
    with torch.no_grad():
        policy.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    from datasets import Dataset

    config = DPOConfig(output_dir=str(tmp_path), beta=0.3, bf16=False, use_cpu=True, report_to=[], per_device_train_batch_size=3)
    trainer = DPOTrainer(policy, reference, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(policy, dict(batch)).item()

    mask = batch["completion_mask"].bool()
    ours = Sequences(batch["input_ids"], batch["input_ids"].masked_fill(~mask, -100))
    both = [PairLogprobs(*completion_logprobs(which, ours).sums.chunk(2)) for which in (policy, reference)]
    found = dpo(*both, beta=0.3).losses.mean().item()
    assert abs(found - math.log(2)) > 1e-3  # the policy did move
    assert found == pytest.approx(expected, abs=1e-5)


def test_accumulation_changes_no_weight(composed, tmp_path):
    """Four rows at once or one by one: the same gradient, up to float32's order of summing."""
    runs = [RunDirectory(tmp_path / name) for name in ("one", "four")]
    for run, micro in zip(runs, (1, 4), strict=True):
        execute(composed([*TINY, "eval=none", "training.learning_rate=1e-3", f"training.micro_batch={micro}"]), run)
    first, second = (AutoModelForCausalLM.from_pretrained(run.model).state_dict() for run in runs)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=1e-3)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(composed, tmp_path):
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run = RunDirectory(tmp_path / name)
        execute(composed([*TINY, "eval=none", f"training.seed={seed}"]), run)
        digests.append(model.content_digest(AutoModelForCausalLM.from_pretrained(run.model)))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_cut_off_run_continues_to_the_same_weights(composed, finished, tmp_path, method):
    """A copy of a finished run with its end taken away, and the same experiment again: step 3 is redone from checkpoint 2."""
    whole = finished(method)
    run = RunDirectory(tmp_path / "again")
    shutil.copytree(whole.path, run.path)
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "checkpoint-3")
    write_json(run.state_file, run.state() | {"state": "running"})  # as a killed process leaves it
    execute(composed([*TINY, f"method={method}", "training.save_steps=2"]), run)
    digests = [model.content_digest(AutoModelForCausalLM.from_pretrained(where.model)) for where in (whole, run)]
    assert digests[0] == digests[1]
    assert run.state()["attempts"] == 2
    assert [(row["step"], row["loss"]) for row in run.metrics()] == [(row["step"], row["loss"]) for row in whole.metrics()]


def test_a_finished_run_is_left_as_it_is(composed, finished, capsys):
    run = finished("dpo")
    before = run.state()
    execute(composed([*TINY, "training.save_steps=2"]), run)
    assert "is finished" in capsys.readouterr().out
    assert run.state() == before


def test_without_evaluation_a_run_measures_nothing(composed, tmp_path):
    run = RunDirectory(tmp_path / "run")
    execute(composed([*TINY, "eval.rows=0", "eval.generations=0", "training.max_steps=1"]), run)
    assert run.report()["metrics"] == {}
    assert run.samples() == []


def test_global_batches_are_those_of_the_permutation():
    """Ten rows in batches of four: every row once, the longest first inside each batch, another order in the next epoch."""
    lengths = [7, 1, 9, 3, 8, 2, 6, 4, 5, 0]
    sampler = GlobalBatches(lengths, 4, seed=1)
    plain = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    first = list(sampler)
    for start in (0, 4, 8):
        window = first[start : start + 4]
        assert set(window) == set(plain[start : start + 4])
        assert [lengths[row] for row in window] == sorted((lengths[row] for row in window), reverse=True)
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(10)) == sorted(first)
    assert list(sampler) != first


def test_a_directory_of_another_experiment_is_refused(composed, finished):
    run = finished("dpo")
    with pytest.raises(UserError, match="directory of its own"):
        execute(composed([*TINY, "training.seed=7"]), run)
    assert run.state()["state"] == "finished"


def test_a_failed_run_says_why(composed, tmp_path):
    """No row of the embedded data fits into 8 tokens."""
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.max_length=8"):
        execute(composed([*TINY, "data.max_length=8"]), run)
    assert run.state()["state"] == "failed"
    assert "data.max_length=8" in run.state()["error"]
    assert not run.partial.exists()


def test_dropped_and_truncated_rows_are_counted(composed, tmp_path):
    rows = [{"prompt": f"Question {n}?", "chosen": "Yes." * n, "rejected": "No."} for n in range(1, 40)]
    rows.append({"prompt": "Same?", "chosen": "a", "rejected": "a"})
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    run = RunDirectory(tmp_path / "run")
    execute(composed([*TINY, "data=local", f"data.path={path}", "data.max_length=60", "training.max_steps=-1"]), run)
    found = run.report()["rows"]
    assert found["dropped"] == {"`chosen` equals `rejected`": 1}
    assert found["truncated"] > 0
    assert found["train"] == 35  # a tenth of 39 prompts is held out


def test_tokens_are_counted_once_a_row(composed, finished, tokenizer):
    rows, _ = tokenise.pairs(tokenizer, data.load(composed(TINY)).train[:12], 256)
    assert finished("dpo").report()["tokens"] == sum(map(tokenise.size, rows))


def test_collate_lays_chosen_and_rejected_in_turn():
    row = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5], "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}
    found = collate([row, row])
    assert found["input_ids"].tolist() == [[1, 2, 3, 0], [1, 2, 4, 5]] * 2
    assert found["labels"].tolist() == [[-100, -100, 3, -100], [-100, -100, 4, 5]] * 2
    assert found["ref_rejected_logps"].tolist() == [-2.0, -2.0]
