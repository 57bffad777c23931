"""Whole runs: every file of the run directory, the first loss, and what does not change a weight."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment_lab import data
from alignment_lab.actions import run_action
from alignment_lab.data import tokenization
from alignment_lab.engine.reference import weights_digest
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.files import file_digest, read_json, write_json
from alignment_lab.runtime.run_directory import RunDirectory

FILES = [
    "metrics.jsonl",
    "provenance.json",
    "report.html",
    "report.json",
    "run.json",
    "samples.jsonl",
    "row_scores.json",
    "spec.yaml",
]
TINY = [
    "model=tiny",
    "parallel.device=cpu",
    "training.max_steps=3",
    "training.global_batch=4",
    "eval.rows=6",
    "eval.generations=3",
    "eval.max_new_tokens=8",
    "training.learning_rate=1e-3",  # so that three steps show
]
SAVED = "training.save_steps=2"


def weights(run: RunDirectory) -> str:
    """A digest of the saved weights."""
    return file_digest(run.model / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, composed):
    """`finished("dpo")`: a short run of a method, once for all tests."""
    runs: dict[str, RunDirectory] = {}

    def make(method: str) -> RunDirectory:
        if method not in runs:
            runs[method] = RunDirectory(tmp_path_factory.mktemp(method) / "run")
            run_action(composed([*TINY, f"method={method}", SAVED]), runs[method])
        return runs[method]

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
    assert {"prompt", "expected", "before", "after", "before_correct", "after_correct"} == run.samples()[
        0
    ].keys()
    report = run.report()
    assert report["steps"] == 3
    assert report["rows"]["train"] == 12
    assert report["rows"]["available"] == 1024
    assert run.metrics()[-1]["epoch"] == round(12 / 1024, 4)
    assert report["metrics"]["eval_loss"]["after"]["n"] == 6
    assert report["id"] == run.state()["id"]
    rows = run.row_scores()
    for name, measured in report["metrics"].items():
        scores = rows["metrics"][name]
        of = sum(scores["weights"]) if "weights" in scores else len(scores["values"])
        assert sum(scores["values"]) / of == pytest.approx(measured["after"]["value"], rel=1e-6, abs=1e-9), (
            name
        )
        assert len(set(scores["prompts"])) == measured["after"]["prompts"] == measured["after"]["n"]
    assert len(rows["prompts"]) == 6, "the answered prompts are among the scored ones"
    assert any((run.path / "tensorboard").iterdir())


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_provenance_names_code_packages_machine_and_content(finished, method):
    provenance = read_json(finished(method).provenance_file)
    version = provenance["packages"]["torch"]
    assert version == torch.__version__.partition("+")[0] or "+" in version
    assert all(len(digest) == 64 for digest in provenance["content"].values())
    assert provenance["content"].keys() == {"model", "data", "tokenizer", "chat_template"}
    assert provenance["hardware"]["cores"] > 0


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_saved_model_loads_in_plain_transformers(finished, method):
    """The weights have changed, nothing is missing, and generation stops at the template's end of turn."""
    run = finished(method)
    loaded, info = AutoModelForCausalLM.from_pretrained(run.model, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert tokenizer.chat_template
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in loaded.generation_config.eos_token_id
    assert weights_digest(loaded) != read_json(run.provenance_file)["content"]["model"]


def test_sft_and_dpo_are_measured_on_the_same_pairs(finished):
    """Before training as guessing has it, of as many pairs, in a table that is ranked by it."""
    for method in ("sft", "dpo"):
        metrics = finished(method).report()["metrics"]
        before, after = (metrics["eval_implicit_rewards/accuracies"][when] for when in ("before", "after"))
        assert (before["value"], before["n"], after["n"]) == (0.5, 6, 6)
        assert metrics["eval_implicit_rewards/margins"]["after"]["value"] != 0
        assert finished(method).metrics()[-1]["num_tokens"] > finished(method).metrics()[0]["num_tokens"] > 0


def test_the_first_dpo_loss_is_log_2(finished):
    run = finished("dpo")
    first = run.metrics()[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    before = run.report()["metrics"]
    assert before["eval_loss"]["before"]["value"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["eval_implicit_rewards/accuracies"]["before"]["value"] == 0.5
    assert {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    } <= first.keys()


@pytest.mark.parametrize(
    "memory", ["training.micro_tokens=1", "training.gradient_checkpointing=true", "model.attention=sdpa"]
)
def test_what_saves_memory_changes_no_weight(memory, composed, finished, tmp_path):
    """A row at a time, recomputed activations, or padding: the same gradient up to float32 sums."""
    run = RunDirectory(tmp_path / "run")
    run_action(composed([*TINY, "method=dpo", "eval=none", memory]), run)
    first, second = (
        AutoModelForCausalLM.from_pretrained(each.model).state_dict() for each in (run, finished("dpo"))
    )
    assert all((first[name] - second[name]).abs().max() < 2e-5 for name in first)  # a step is up to 1e-3 long
    assert [row["loss"] for row in run.metrics()] == pytest.approx(
        [row["loss"] for row in finished("dpo").metrics() if "loss" in row], abs=1e-5
    )


@pytest.mark.parametrize("method", ["dpo", "bco"])
def test_evaluation_during_training_changes_no_weight(method, composed, finished, tmp_path):
    """Held-out rows change no weight and no shift of BCO, and their metrics are logged."""
    run = RunDirectory(tmp_path / "run")
    run_action(composed([*TINY, f"method={method}", SAVED, "training.eval_steps=1"]), run)
    assert weights(run) == weights(finished(method))
    assert [row["step"] for row in run.metrics() if "eval_loss" in row] == [1, 2]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(composed, tmp_path):
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run = RunDirectory(tmp_path / name)
        run_action(composed([*TINY, "eval=none", f"training.seed={seed}"]), run)
        digests.append(weights(run))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "bco", "reward"])
def test_an_interrupted_run_ends_with_the_same_weights(composed, finished, tmp_path, method):
    """A copy of a finished run without its end is run again: step 3 is repeated from checkpoint 2.

    The checkpoint holds BCO's shift too: if it began at 0 again, the third loss would differ.
    """
    whole = finished(method)
    run = RunDirectory(tmp_path / "again")
    shutil.copytree(whole.path, run.path)
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "checkpoint-3")
    write_json(run.state_file, run.state() | {"state": "running"})  # as a killed process leaves it
    run_action(composed([*TINY, f"method={method}", SAVED]), run)
    assert weights(whole) == weights(run)
    assert run.state()["attempts"] == 2
    assert_figures_are_of_both_attempts(run.report(), whole.report())
    assert run.report()["metrics"] == whole.report()["metrics"]  # those against the initial policy too
    assert [(row["step"], row["loss"], row["num_tokens"]) for row in run.metrics()] == [
        (row["step"], row["loss"], row["num_tokens"]) for row in whole.metrics()
    ]


def assert_figures_are_of_both_attempts(report: dict, first: dict) -> None:
    """Step 3 was taken twice: its tokens count once, its seconds twice."""
    attempts = report["attempts"]
    assert [(each["from_step"], each["step"]) for each in attempts] == [(0, 3), (2, 3)]
    assert (report["steps"], report["repeated_steps"], report["tokens"]) == (3, 1, first["tokens"])
    seconds = [each["seconds"]["train"] for each in attempts]
    assert seconds[0] == pytest.approx(first["seconds"]["train"], abs=0.1) and seconds[1] > 0
    assert report["seconds"]["train"] == pytest.approx(sum(seconds), abs=0.02)
    assert report["tokens_per_second"] == pytest.approx(report["tokens"] / sum(seconds), rel=0.05)
    total = sum(each["seconds"]["total"] for each in attempts)
    assert report["device_hours"] == pytest.approx(total / 3600, abs=1e-4)
    assert report["peak_memory_gb"] == max(each["peak_memory_gb"] for each in attempts) > 0


RESUMED = {  # the checkpoint that is left, and overrides; cases with overrides are slow
    "in the middle of an epoch": (7, []),
    "at an epoch's end": (5, []),
    "with several passes a step": (7, ["training.micro_tokens=40"]),
    "with an evaluation at the save": (7, ["eval.rows=2", "eval.generations=1", "training.eval_steps=7"]),
    "between two logs": (7, ["training.logging_steps=3"]),
    "with two workers": (5, ["training.dataloader_num_workers=2"]),
    "with an adapter": (5, ["parallel=lora"]),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[pytest.mark.slow] if more else []) for name, (_, more) in RESUMED.items()],
)
def test_a_run_is_resumed_from_any_step(case, composed, tmp_path, write_rows):
    """18 pairs are 5 steps an epoch, each shuffled anew: log and weights are those of the whole run."""
    step, more = RESUMED[case]
    rows = write_rows(
        [{"prompt": f"What is {n}?", "chosen": f"A number, {n}.", "rejected": "No."} for n in range(20)]
    )
    overrides = [
        *TINY,
        "data=local",
        f"data.path={rows}",
        "training.max_steps=-1",
        "training.num_train_epochs=2",
        "eval=none",
    ]
    spec = composed([*overrides, f"training.save_steps={step}", *more])
    whole, run = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "run")
    run_action(spec, whole)
    assert whole.metrics()[-1]["step"] == 10
    shutil.copytree(whole.path, run.path)
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "checkpoint-10")
    write_json(run.state_file, run.state() | {"state": "running"})
    run_action(spec, run)
    assert run.state()["training"]["from_step"] == step
    assert run.metrics() == whole.metrics()
    assert all(
        file_digest(file) == file_digest(whole.model / file.name) for file in run.model.glob("*.safetensors")
    )


def test_a_finished_run_is_left_unchanged(composed, finished, capsys):
    run = finished("dpo")
    before = run.state()
    run_action(composed([*TINY, SAVED]), run)
    assert "is finished" in capsys.readouterr().out
    assert run.state() == before


def test_without_evaluation_a_run_measures_nothing(composed, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run_action(composed([*TINY, "eval.rows=0", "eval.generations=0", "training.max_steps=1"]), run)
    assert run.report()["metrics"] == {}
    assert run.samples() == []


def test_a_directory_of_another_experiment_is_refused(composed, finished):
    run = finished("dpo")
    with pytest.raises(UserError, match="directory of its own"):
        run_action(composed([*TINY, "training.seed=7"]), run)
    assert run.state()["state"] == "finished"


def test_a_failed_run_records_the_reason(composed, tmp_path):
    """No row of the embedded data fits into 8 tokens."""
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.max_length=8"):
        run_action(composed([*TINY, "data.max_length=8"]), run)
    assert run.state()["state"] == "failed"
    assert "data.max_length=8" in run.state()["error"]
    assert not run.partial.exists()


def test_dropped_and_truncated_rows_are_counted(composed, tmp_path, capsys):
    """Few bad rows do not end a run: they lie in its directory, with their places and reasons."""
    rows = [{"prompt": f"Question {n}?", "chosen": "Yes." * n, "rejected": "No."} for n in range(1, 40)]
    rows[20:20] = [{"prompt": "Same?", "chosen": "a", "rejected": "a"}, {"prompt": "Half?", "chosen": "b"}]
    lines = [*map(json.dumps, rows), '{"prompt": "cut?", "cho']
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    run = RunDirectory(tmp_path / "run")
    local = ["data=local", f"data.path={path}", "data.max_bad_fraction=0.05"]
    run_action(composed([*TINY, *local, "data.max_length=60", "training.max_steps=-1"]), run)
    counts = run.report()["rows"]
    records = [json.loads(line) for line in run.quarantine_file.read_text().splitlines()]
    reasons = {21: "equal_answers", 22: "missing_column", 42: "unreadable"}
    assert [(record["file"], record["line"], record["reason"]) for record in records] == [
        (str(path), line, reason) for line, reason in reasons.items()
    ]
    assert [record["row"] for record in records] == [lines[line - 1] for line in reasons]
    assert counts["dropped"] == {record["detail"]: 1 for record in records}
    assert counts["reasons"] == dict.fromkeys(reasons.values(), 1)
    assert f"quarantine: 3 rows of {path}, with file, line and reason, in " in capsys.readouterr().out
    assert counts["truncated"] > 0
    assert counts["train"] == 35  # a tenth of 39 prompts is held out
    (source,) = counts["sources"].values()
    assert (source["tokenized"], source["answers"], source["answers_trained"]) == (35, 70, 70)
    assert 0 < source["truncated"] <= counts["truncated"] and source["tokens"] > 35 * 3


def test_tokens_are_counted_once_a_row(composed, finished, tokenizer):
    rows = tokenization.tokenize_pairs(tokenizer, data.load_rows(composed(TINY)).train[:12], 256).rows
    assert finished("dpo").report()["tokens"] == sum(map(data.count_tokens, rows))
