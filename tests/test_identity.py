"""A run resumes with other settings where they change no number; another experiment is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from small_content import CHANGES, NO_CHANGES, make_content
from small_saves import in_this_process, verify_in_this_process

from alignment_lab import content
from alignment_lab.actions import run_action
from alignment_lab.config import Experiment, differences, is_free, known_keys, to_plain, to_yaml
from alignment_lab.config.identity import FREE_SETTINGS, MAX_VALUE_LENGTH
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.files import file_digest, read_json, write_json
from alignment_lab.runtime.run_directory import RunDirectory

__all__ = ["in_this_process"]  # a fixture
TINY = [
    "model=tiny",
    "parallel.device=cpu",
    "training.max_steps=4",
    "training.global_batch=4",
    "training.learning_rate=1e-3",
    "eval=none",
]


def test_the_table_names_settings_that_there_are():
    assert set(FREE_SETTINGS) <= set(known_keys())
    assert len(set(FREE_SETTINGS)) == len(FREE_SETTINGS)


FREED = {  # another value of each
    "name": "name=other",
    "action": "action=plan",
    "tracking": "tracking=wandb tracking.project=p tracking.tags=[a]",
    "plan": "plan.device=h100",
    "preview": "preview.rows=2",
    "parallel.name": "parallel.name=other",
    "parallel.processes": "parallel=ddp parallel.processes=2",
    "parallel.nodes": "parallel=ddp parallel.nodes=2",
    "parallel.sharding": "parallel=zero3",
    "training.micro_tokens": "training.micro_tokens=64",
    "training.gradient_checkpointing": "training.gradient_checkpointing=true",
    "training.dataloader_num_workers": "training.dataloader_num_workers=2",
    "training.watchdog_minutes": "training.watchdog_minutes=null",
    "training.on_nonfinite": "training.on_nonfinite=skip",
    "training.max_nonfinite": "training.max_nonfinite=9",
    "training.logging_steps": "training.logging_steps=10",
    "training.eval_steps": "training.eval_steps=10",
    "training.save_steps": "training.save_steps=10",
    "training.save_total_limit": "training.save_total_limit=7",
    "model.kernels": "model.kernels=fused",
    "training.push_to_hub": "training.push_to_hub=true",
    "training.hub_model_id": "training.hub_model_id=org/name",
    "training.hub_strategy": "training.hub_strategy=end",
    "training.hub_private_repo": "training.hub_private_repo=false",
    "training.hub_revision": "training.hub_revision=v2",
    "eval.objective": "eval.objective=eval_loss",
    "eval.direction": "eval.direction=minimize",
    "eval.models": "eval.models=[somewhere]",
    "eval.before": "eval.before=true",
    "eval.measures": "eval.measures=[generate]",
    "eval.after": "eval.after=[perplexity]",
    "eval.reference": "eval.reference=somewhere",
    "eval.own_data": "eval.own_data=true",
    "eval.lm_eval": "eval.lm_eval.tasks=[a]",
    "eval.ifbench": "eval.ifbench.limit=2",
    "eval.mt_bench": "eval.mt_bench.choices=2",
    "eval.alpaca_eval": "eval.alpaca_eval.temperature=0.5",
    "eval.preference": "eval.preference.length_ratio=2",
    "eval.perplexity": "eval.perplexity.window=64",
    "eval.generate": "eval.generate.n=2",
    "eval.winrate": "eval.winrate.trial_prompts=9",
}


def test_every_free_setting_is_tested():
    """That of a plugin needs a file: tests/test_plugins.py moves one."""
    assert {*FREED, "plugin"} == set(FREE_SETTINGS)


def test_a_key_in_a_free_group_is_free():
    assert all(map(is_free, ("tracking", "tracking.wandb", "plan.device", "training.save_steps")))
    assert not any(
        map(is_free, ("training", "training.seed", "method.name", "name_of_another_key", "parallel.device"))
    )


@pytest.mark.parametrize("key", FREED)
def test_what_may_change_makes_no_other_experiment(key, composed):
    spec, other = composed(), composed(FREED[key].split())
    assert spec != other
    assert spec.run_id == other.run_id
    assert differences(to_plain(spec), to_plain(other)) == []


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.seed=43", "training.seed is 42 there and 43 here"),
        ("data.max_length=300", "data.max_length is 256 there and 300 here"),
        ("training.learning_rate=3e-6", "training.learning_rate is 1e-06 there and 3e-06 here"),
        ("model.dtype=bfloat16", "model.dtype is float32 there and bfloat16 here"),
        ("training.max_grad_norm=0", "training.max_grad_norm is 1.0 there and 0.0 here"),
        ("data.config=de", "data.config is null there and de here"),
        ("model.trust_remote_code=true", "model.trust_remote_code is false there and true here"),
        ("parallel.targets=[q_proj]", 'parallel.targets is null there and ["q_proj"] here'),
        ("parallel.rank=8", "parallel.rank is 16 there and 8 here"),
        ("parallel.device=cpu", "parallel.device is auto there and cpu here"),
        ("eval.rows=8", "eval.rows is 64 there and 8 here"),
    ],
)
def test_what_makes_another_experiment_is_named(override, sentence, composed):
    spec, other = composed(), composed([override])
    assert spec.run_id != other.run_id
    assert differences(yaml.safe_load(to_yaml(spec)), to_plain(other)) == [sentence]


def test_adapters_and_bits_are_other_experiments(composed):
    assert differences(to_plain(composed()), to_plain(composed(["parallel=qlora"]))) == [
        "parallel.adapter is none there and lora here",
        "parallel.quantization is none there and nf4 here",
    ]


def test_settings_that_only_one_of_them_has_are_named(composed):
    sentence = differences(
        to_plain(composed(["method=dpo"])), to_plain(composed(["method=ld_dpo", "method.alpha=0.5"]))
    )
    assert "method.name is dpo there and ld_dpo here" in sentence
    assert "method.alpha is not set there and 0.5 here" in sentence


def test_a_long_value_is_cut(composed):
    (sentence,) = differences(
        to_plain(composed()), to_plain(composed(["model.chat_template='{{ messages }}" + "x" * 100 + "'"]))
    )
    assert sentence.endswith("[...] here") and len(sentence) < 2 * MAX_VALUE_LENGTH + 40


# ---- on the disk


@pytest.fixture(scope="module")
def finished(composed, tmp_path_factory) -> RunDirectory:
    run = RunDirectory(tmp_path_factory.mktemp("identity") / "run")
    run_action(composed([*TINY, "training.save_steps=2"]), run)
    return run


def cut_off(finished: RunDirectory, run: RunDirectory) -> RunDirectory:
    """A copy that was ended behind its second step."""
    shutil.copytree(finished.path, run.path)
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    write_json(run.state_file, run.state() | {"state": "failed"})
    return run


def test_a_run_goes_on_with_what_may_change_and_it_takes_effect(composed, finished, tmp_path, capsys):
    run = cut_off(finished, RunDirectory(tmp_path / "run"))
    spec = composed(
        [
            *TINY,
            "name=renamed",
            "training.save_steps=1",
            "training.save_total_limit=5",
            "training.logging_steps=2",
        ]
    )
    run_action(spec, run)
    printed = capsys.readouterr()
    assert "resuming from" in printed.out and "do not match" not in printed.out + printed.err
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == [
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-4",
    ]
    assert [row["step"] for row in run.metrics()] == [1, 2, 4]
    assert file_digest(run.model / "model.safetensors") == file_digest(finished.model / "model.safetensors")
    assert run.spec_file.read_text() == to_yaml(spec)
    assert run.spec()["name"] == "renamed" and run.spec()["training"]["save_steps"] == 1
    assert run.state()["id"] == finished.state()["id"] and run.state()["attempts"] == 2


def test_passes_of_another_size_go_on_with_the_same_losses(composed, finished, tmp_path):
    run = cut_off(finished, RunDirectory(tmp_path / "run"))
    run_action(
        composed(
            [
                *TINY,
                "training.save_steps=2",
                "training.micro_tokens=1",
                "training.gradient_checkpointing=true",
            ]
        ),
        run,
    )
    assert [row["loss"] for row in run.metrics()] == pytest.approx(
        [row["loss"] for row in finished.metrics()], rel=1e-4
    )


def test_a_finished_run_stays_as_it_is_whatever_may_change(composed, finished, capsys):
    before = {file: file.stat().st_mtime_ns for file in finished.path.rglob("*") if file.is_file()}
    run_action(composed([*TINY, "training.save_steps=1", "name=renamed"]), finished)
    assert "this experiment is finished" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in finished.path.rglob("*") if file.is_file()} == before


def refusal(spec: Experiment, run: RunDirectory) -> str:
    before = run.spec_file.read_text(), run.state()
    with pytest.raises(UserError) as refused:
        run_action(spec, run)
    assert (run.spec_file.read_text(), run.state()) == before
    return str(refused.value)


def test_another_experiment_is_refused_by_what_differs(composed, finished):
    assert refusal(
        composed([*TINY, "training.save_steps=9", "training.seed=43", "data.max_length=99"]), finished
    ) == (
        f"{finished.path}: data.max_length is 256 there and 99 here, training.seed is 42 there and 43 here: "
        "this is another experiment; "
        "give it a directory of its own: hydra.run.dir=DIRECTORY."
    )


def test_five_differences_are_named_and_the_others_counted(composed, finished):
    others = [
        "training.seed=1",
        "data.max_length=99",
        "training.max_steps=9",
        "training.weight_decay=1",
        "training.optim=sgd",
    ]
    sentence = refusal(composed([*TINY, *others, "training.max_grad_norm=9", "eval.batch=3"]), finished)
    assert sentence.count(" there and ") == 5
    assert ", and 2 more: this is another experiment" in sentence


def test_the_command_ends_with_one_sentence_and_2(run_command, finished):
    ended = run_command(*TINY, "training.seed=43", f"hydra.run.dir={finished.path}")
    assert ended.code == 2
    assert len(ended.errors) == 1 and ended.errors[0].startswith("error: ")
    assert "training.seed is 42 there and 43 here: this is another experiment" in ended.errors[0]
    assert finished.state()["state"] == "finished"


def test_a_directory_of_another_version_of_the_lab_says_so(composed, finished, tmp_path):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    write_json(run.state_file, run.state() | {"id": "0" * 12})
    assert "another version of the lab" in refusal(composed(TINY), run)


# ---- what the settings name


@pytest.fixture(scope="module")
def made(composed, tmp_path_factory) -> tuple[Path, list[str], RunDirectory]:
    """The files of an experiment, its overrides, and its finished run."""
    folder = tmp_path_factory.mktemp("content")
    overrides = make_content(folder / "files")
    run = RunDirectory(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        verify_in_this_process(patch)
        run_action(composed(overrides), run)
    return folder / "files", overrides, run


@pytest.fixture
def changed(made, tmp_path):
    """`changed(change)`: the files changed; put back when the test ends."""
    files = made[0]
    shutil.copytree(files, tmp_path / "kept")

    def apply(change) -> None:
        change(files)

    yield apply
    shutil.rmtree(files)
    shutil.copytree(tmp_path / "kept", files)


def found(made, composed) -> list[str]:
    files, overrides, run = made
    return content.find_changes(read_json(run.provenance_file), composed(overrides), files / "model")


def one_of_each_kind(names, fast: set[str]):
    """The others are slow tests, and `make torture` causes all of them in real runs."""
    assert fast <= set(names)
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in names]


CHANGED_FAST = {
    "a row edited",
    "a file more in the folder",
    "a held-out row removed",
    "another chat template",
    "one weight",
    "a constant of the model",
    "the adapter's alpha_pattern",
}
SAME_FAST = {"files copied in their place", "a file renamed in its place"}


@pytest.mark.parametrize("name", one_of_each_kind(CHANGES, CHANGED_FAST))
def test_what_changed_under_its_name_is_named(name, made, changed, composed):
    change, words = CHANGES[name]
    changed(change)
    (clause,) = found(made, composed)
    assert words in clause and str(made[0]) in clause


@pytest.mark.parametrize("name", one_of_each_kind(NO_CHANGES, SAME_FAST))
def test_what_is_only_written_anew_is_no_change(name, made, changed, composed, tmp_path, monkeypatch):
    """Nor is another cache."""
    monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / "cache"))
    changed(NO_CHANGES[name])
    assert found(made, composed) == []


def test_a_run_is_not_resumed_on_other_rows_and_keeps_every_attempt(
    made, changed, composed, in_this_process, tmp_path, capsys
):
    """Refused while there are checkpoints; a finished run says it instead of that it is finished; what is put
    back goes on to the same weights; without a checkpoint there is nothing to protect.
    """
    files, overrides, whole = made
    spec, run = composed(overrides), RunDirectory(tmp_path / "run")
    shutil.copytree(whole.path, run.path)
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    write_json(run.state_file, run.state() | {"state": "interrupted"})
    first = read_json(run.provenance_file)
    before = {file: file_digest(file) for file in run.checkpoints.rglob("*") if file.is_file()}
    rows = (files / "rows" / "a.jsonl").read_text()
    changed(CHANGES["a row added"][0])
    with pytest.raises(UserError, match=r"a\.jsonl changed; 24 rows before, 25 now.*put that back"):
        run_action(spec, run)
    assert run.state()["state"] == "interrupted" and "a.jsonl changed" in run.state()["error"]
    with pytest.raises(UserError, match=r"a\.jsonl changed.*this run finished on what was there before"):
        run_action(spec, whole)
    assert whole.state()["state"] == "finished"
    assert {file: file_digest(file) for file in run.checkpoints.rglob("*") if file.is_file()} == before
    (files / "rows" / "a.jsonl").write_text(rows)
    older = read_json(run.provenance_file)
    older["attempts"][-1]["packages"]["torch"] = "1.0"
    write_json(run.provenance_file, older)
    run_action(spec, run)
    assert "since the attempt before: torch 1.0 is now " in capsys.readouterr().out
    assert file_digest(run.model / "adapter_model.safetensors") == file_digest(
        whole.model / "adapter_model.safetensors"
    )
    provenance = read_json(run.provenance_file)
    assert [attempt["number"] for attempt in provenance["attempts"]] == [1, 2, 3]
    assert all({"command", "packages", "hardware"} <= attempt.keys() for attempt in provenance["attempts"])
    assert {key: provenance[key] for key in first if key != "attempts"} == {
        key: first[key] for key in first if key != "attempts"
    }
    assert provenance["attempts"][0] == first["attempts"][0]
    assert provenance["attempts"][2]["content"] == first["content"]


@pytest.mark.slow
def test_without_a_checkpoint_a_run_starts_anew_on_what_is_there(
    made, changed, composed, in_this_process, tmp_path, capsys
):
    _, overrides, whole = made
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(whole.path, run.path)
    shutil.rmtree(run.checkpoints)
    write_json(run.state_file, run.state() | {"state": "failed"})
    changed(CHANGES["a row added"][0])
    run_action(composed(overrides), run)
    assert "there is no checkpoint yet: training starts anew" in " ".join(capsys.readouterr().out.split())
    provenance = read_json(run.provenance_file)
    assert provenance["number"] == 2 and provenance["rows"] == {"train": 25, "heldout": 4}
    assert provenance["attempts"][0]["rows"] == {"train": 24, "heldout": 4}
