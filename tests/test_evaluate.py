"""action=evaluate: it says of a run what the run said of itself; what it refuses; what it compares."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from small_saves import verify_in_this_process
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment_lab.actions import run_action
from alignment_lab.config import Eval, Measure
from alignment_lab.engine.packing import ScoredSequence
from alignment_lab.evaluation.candidates import find_candidate, find_candidates
from alignment_lab.evaluation.intervals import Scores
from alignment_lab.evaluation.judges.local import ChatJudge, RewardJudge
from alignment_lab.evaluation.judges.rubric import RUBRIC, judge_messages
from alignment_lab.evaluation.judges.verdicts import Pair
from alignment_lab.evaluation.measures import MEASURES
from alignment_lab.evaluation.perplexity import Text, windows
from alignment_lab.evaluation.preference import calibration
from alignment_lab.evaluation.subject import load_subject
from alignment_lab.models.locate import locate_model
from alignment_lab.report.__main__ import main as report
from alignment_lab.report.study.evaluations import evaluations_of
from alignment_lab.report.study.paired import difference
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.files import file_digest
from alignment_lab.runtime.run_directory import RunDirectory

TINY = (
    "model=tiny",
    "parallel.device=cpu",
    "tracking=local",
    "eval.rows=6",
    "eval.generations=3",
    "eval.max_new_tokens=4",
    "data.max_length=128",
)
TRAINED = (*TINY, "training.max_steps=2", "training.warmup_steps=0", "training.learning_rate=1e-2")
KINDS = {
    "dpo": ("training.save_steps=1",),
    "lora": ("parallel=lora", "training.learning_rate=0.5"),
    "sft": ("method=sft",),
    "kto": ("method=kto",),
    "simpo": ("method=simpo",),
    "reward": ("method=reward",),
}


@pytest.fixture(scope="module")
def trained(composed, tmp_path_factory):
    """`trained(kind)`: a finished run of two steps, made once."""
    folder = tmp_path_factory.mktemp("runs")

    def make(kind: str) -> RunDirectory:
        run = RunDirectory(folder / kind)
        if not run.state():
            with pytest.MonkeyPatch.context() as patch:
                verify_in_this_process(patch)
                run_action(composed([*TRAINED, *KINDS[kind]]), run)
        return run

    return make


@pytest.fixture(scope="module")
def evaluated(composed, trained, tmp_path_factory):
    """The run before and after and its first checkpoint, by all measures; and digests of the run's own files
    before that.
    """
    run = trained("dpo")
    own = {name: file_digest(run.path / name) for name in ("report.json", "row_scores.json", "run.json")}
    found = RunDirectory(tmp_path_factory.mktemp("evaluations") / "all")
    models = f"eval.models=[{run.path},{run.checkpoints}/checkpoint-1]"
    measures = "eval.measures=[preference,perplexity,generate]"
    run_action(composed([*TINY, "action=evaluate", models, measures, "eval.before=true"]), found)
    return found, own


def assert_same(run: RunDirectory, found: RunDirectory) -> None:
    """Every metric of held-out rows is that of the run's own report, before training and after it."""
    before, after = (model["metrics"] for model in found.report()["models"][:2])
    reported = {name: each for name, each in run.report()["metrics"].items() if name.startswith("eval_")}
    assert len(reported) > 1
    for name, each in reported.items():
        for when, measured in (("before", before), ("after", after)):
            if each[when] is None:
                assert name not in measured
                continue
            assert measured[name]["value"] == pytest.approx(each[when]["value"], rel=1e-4, abs=1e-4), name
            assert measured[name]["n"] == each[when]["n"]


def test_an_evaluation_says_of_a_run_what_the_run_says_of_itself(evaluated, trained):
    assert_same(trained("dpo"), evaluated[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dpo"])
def test_so_it_does_of_every_kind_of_run(kind, composed, trained, tmp_path):
    run, found = trained(kind), RunDirectory(tmp_path / "evaluation")
    run_action(composed([*TINY, "action=evaluate", f"eval.models=[{run.path}]", "eval.before=true"]), found)
    assert_same(run, found)


def test_models_are_measured_from_their_initial_policy(evaluated):
    """Which is at 0 from itself; on the same prompts, with as many answers."""
    before, after, first = evaluated[0].report()["models"]
    assert before["metrics"]["sampled/kl"]["value"] == 0
    assert after["metrics"]["sampled/kl"]["value"] != first["metrics"]["sampled/kl"]["value"] != 0
    assert {model["metrics"]["sampled/kl"]["n"] for model in (before, after, first)} == {12}
    assert (first["kind"], first["step"]) == ("checkpoint", 1)


def test_the_training_run_stays_as_it_was_and_knows_of_it(evaluated, trained):
    run, (found, own) = trained("dpo"), evaluated
    assert {name: file_digest(run.path / name) for name in own} == own
    assert sorted(str(entry["model"]["step"]) for entry in evaluations_of(run)) == ["1", "None", "None"]
    assert found.state()["kind"] == "evaluation"
    assert "Evaluated since" in run.page_file.read_text()


def test_the_same_evaluation_is_not_done_again_and_other_weights_are_another(
    composed, evaluated, trained, tmp_path, capsys
):
    found, run = evaluated[0], trained("dpo")
    ended = found.state()["ended"]
    overrides = [*TINY, "action=evaluate", "eval.before=true"]
    measures = "eval.measures=[preference,perplexity,generate]"
    models = f"eval.models=[{run.path},{run.checkpoints}/checkpoint-1]"
    run_action(composed([*overrides, models, measures]), found)
    assert "finished" in capsys.readouterr().out
    assert found.state()["ended"] == ended
    with pytest.raises(Exception, match="holds another evaluation"):
        run_action(composed([*overrides, f"eval.models=[{run.checkpoints}/checkpoint-1]"]), found)
    with pytest.raises(Exception, match="is a training run"):
        run_action(composed([*overrides, models]), run)


@pytest.mark.slow
def test_the_kl_by_sampling_agrees_with_the_whole_distribution(composed, trained, tmp_path):
    """Of answers of one token: sum_v p(v) log(p(v) / q(v)) over the vocabulary, for each prompt."""
    run, found = trained("dpo"), RunDirectory(tmp_path / "evaluation")
    drawn = ["eval.max_new_tokens=1", "eval.generate.n=256", "eval.measures=[generate]"]
    spec = composed([*TINY, *drawn, "action=evaluate", f"eval.models=[{run.path}]"])
    run_action(spec, found)
    (model,) = found.report()["models"]
    (candidate,), _ = find_candidates(spec)
    prompts = [json.loads(line)["prompt"] for line in (found.path / model["files"][0]).open()]
    distinct = list({json.dumps(prompt): prompt for prompt in prompts}.values())
    console = Console(quiet=True)
    subject = load_subject(candidate, 128, console)

    def log_probabilities(policy):
        encoded = [
            policy.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            for prompt in distinct
        ]
        with torch.no_grad():
            logits = [
                policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in encoded
            ]
        return torch.stack(logits).double().log_softmax(-1)

    own = log_probabilities(subject)
    with subject.reference(console) as reference:
        start = log_probabilities(reference)
    exact = float((own.exp() * (own - start)).sum(-1).mean())
    error = float((own.exp() * (own - start) ** 2).sum(-1).mean()) ** 0.5 / (256 * len(distinct)) ** 0.5
    assert exact > 0
    assert model["metrics"]["sampled/kl"]["value"] == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("eval.models=[nowhere/at/all]", "eval.models=nowhere/at/all: no such directory"),
        ("eval.models=[{empty}]", "no model is there"),
        ("eval.models=['{empty}/*/checkpoints']", "no folder fits this pattern"),
        ("eval.models=[{failed}]", "this run is not finished, but failed"),
        ("eval.models=[{evaluation}]", "this is an evaluation, and no model"),
        ("eval.models=[{run},{run}]", "is there twice"),
        ("eval.models=[{run}] eval.reference={empty}", "eval.reference={empty}: no model is there"),
        ("eval.models=[{scorer}] eval=generate", "is a reward model, which scores answers and writes none"),
        ("eval.models=[{run}] eval.measures=[likeness]", "likeness"),
        ("eval.models=[{run}] eval.generate.n=4 eval.generate.temperature=0", "eval.generate.n=4"),
        ("eval.models=[{run}] eval.measures=[]", "eval.measures=[]"),
        ("eval.models=[{run}] eval.rows=0", "eval.rows=0: preference has nothing to measure"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    overrides, words, call_main, trained, evaluated, tmp_path
):
    run = trained("dpo")
    failed, scorer, empty = tmp_path / "failed", tmp_path / "scorer", tmp_path / "empty"
    for folder in (failed, scorer, empty):
        folder.mkdir()
    (failed / "run.json").write_text(json.dumps({**run.state(), "state": "failed"}))
    (scorer / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    names = {
        "run": run.path,
        "failed": failed,
        "scorer": scorer,
        "empty": empty,
        "evaluation": evaluated[0].path,
    }
    arguments = overrides.format(**names).split(" ")
    ended = call_main("action=evaluate", "hydra.run.dir=made", *arguments)
    assert ended.code == 2
    assert len(ended.errors) == 1 and words.format(**names) in ended.errors[0]
    assert not Path("made").exists()


def test_every_measure_has_a_row_a_node_of_settings_and_an_option(composed):
    assert set(MEASURES) == set(Measure)
    for measure in Measure:
        assert hasattr(Eval(), measure.name)
        assert composed([f"eval={measure.name}"]).eval.measures == [measure]


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40])
@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 15), (8, 1)])
def test_windows_score_every_token_once_with_enough_before_it(length, window, stride):
    text = Text("", [0], list(range(1, length + 1)), length)
    pieces = windows(text, window, stride)
    assert [token for piece in pieces for token in piece.answer] == text.ids
    assert all(len(piece) <= window for piece in pieces)
    assert pieces[0] == ScoredSequence([0], list(range(1, min(length, window - 1) + 1)))
    assert all(len(piece.prompt) >= window - stride for piece in pieces[1:])
    assert all(
        [*piece.prompt, *piece.answer] == [*range(piece.answer[-1] + 1)][-len(piece) :] for piece in pieces
    )


def test_a_difference_is_paired_and_mirrored():
    """4, 6, 9 less 1, 2, 3: the mean of 3, 4, 6 is 13/3, sd 1.527525, t(2) = 4.302653: half width 3.794581.
    Models that differ by a constant differ by it, whatever the prompts do to both.
    """
    prompts = ["a", "b", "c"]
    ours = Scores([4.0, 6.0, 9.0], prompts=prompts)
    theirs = Scores([3.0, 1.0, 2.0], prompts=["c", "a", "b"])
    found = difference(ours, theirs, is_share=False)
    assert found["value"] == pytest.approx(13 / 3)
    assert np.subtract(found["ci95"], 13 / 3) == pytest.approx([-3.794581, 3.794581], abs=1e-5)
    mirrored = difference(theirs, ours, is_share=False)
    assert mirrored["value"] == -found["value"]
    assert mirrored["ci95"] == pytest.approx([-bound for bound in reversed(found["ci95"])])
    shifted = Scores([value + 2 for value in ours.values], prompts=prompts)
    assert difference(shifted, ours, is_share=False)["value"] == pytest.approx(2)


def test_calibration_by_hand():
    """sigmoid(0) = 1/2 with a tie, and sigmoid(log 3) = 3/4 each, right or wrong."""
    log3 = float(np.log(3))
    rows = calibration([log3, -log3, 0.0])
    assert [row["said"] for row in rows] == pytest.approx([0.5, 0.75, 0.75])
    assert [row["right"]["value"] for row in rows] == [0.5, 1.0, 0.0]


def test_evaluations_of_one_set_are_compared_and_others_refused(evaluated, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(evaluated[0].path, other)
    assert report([str(evaluated[0].path), str(other)]) == 0
    page = (tmp_path / "comparison" / "report.html").read_text()
    assert "(other)" in page and "Δ" not in capsys.readouterr().err
    content = json.loads((other / "report.json").read_text())
    content["settings"]["max_new_tokens"] = 99
    (other / "report.json").write_text(json.dumps(content))
    assert report([str(evaluated[0].path), str(other)]) == 2
    assert "max_new_tokens=99" in capsys.readouterr().err
    content["rows_digest"] = dict.fromkeys(content["rows_digest"], "other")
    (other / "report.json").write_text(json.dumps(content))
    assert report([str(evaluated[0].path), str(other)]) == 2
    assert "other rows" in capsys.readouterr().err


def judged(composed, run: RunDirectory, folder: Path, **settings: object) -> RunDirectory:
    """The win rate of a run's answers; settings are those of eval.winrate."""
    found = RunDirectory(folder)
    given = [f"eval.winrate.{name}={value}" for name, value in settings.items()]
    overrides = [*TINY, "action=evaluate", "eval=winrate", f"eval.models=[{run.path}]", *given]
    run_action(composed(overrides), found)
    return found


@pytest.mark.slow
def test_a_model_beside_itself_ties_without_asking_and_a_file_of_answers_is_matched(
    composed, trained, tmp_path
):
    """A file with the data's own answers is the data's own answers."""
    run, judge = trained("dpo"), {"judge": "reward", "judge_model": trained("reward").path}
    own = judged(composed, run, tmp_path / "own", **judge, baseline=run.path)
    (model,) = own.report()["models"]
    ((title, table),) = [each for each in model["tables"].items() if each[0].startswith("Win rate over")]
    values = {row["figure"]: row["value"] for row in table}
    assert str(run.path) in title
    assert values["win rate"]["value"] == 0.5 and values["ties"] == 3
    assert values["identical answers, ties without asking"] == 3
    data = judged(composed, run, tmp_path / "data", **judge)
    lines = [json.loads(line) for line in next(data.path.glob("*judgments.jsonl")).read_text().splitlines()]
    assert len(lines) == 3 and all(line["baseline"] for line in lines)
    answers = tmp_path / "answers.jsonl"
    kept = [{"prompt": line["prompt"][0]["content"], "output": line["baseline"]} for line in reversed(lines)]
    answers.write_text("".join(json.dumps(each) + "\n" for each in kept))
    same = judged(composed, run, tmp_path / "file", **judge, baseline=answers)
    assert same.report()["models"][0]["metrics"] == data.report()["models"][0]["metrics"]
    answers.write_text(json.dumps(kept[0]) + "\n")
    with pytest.raises(UserError, match="no answer to 2 of 3 prompts"):
        judged(composed, run, tmp_path / "less", **judge, baseline=answers)
    assert not (tmp_path / "less").exists()


def test_a_judge_that_fails_its_trial_is_named_beside_every_figure(composed, trained, tmp_path, capsys):
    """Random weights find no defect."""
    judge = locate_model(composed(["model=tiny"]).model)
    chat = {"judge": "chat", "judge_model": judge}
    found = judged(composed, trained("dpo"), tmp_path / "chat", **chat)
    (model,) = found.report()["models"]
    assert "winrate/judge_failed" in model["metrics"] and "winrate" not in model["metrics"]
    table = next(rows for title, rows in model["tables"].items() if title.startswith("Win rate over"))
    assert all("FAILED" in row["judge"] for row in table)
    assert any("FAILED its trial" in note for note in model["notes"])
    for text in (found.page_file.read_text(), capsys.readouterr().out):
        assert "FAILED its trial" in text
    with pytest.raises(UserError, match="has the same weights as"):
        judged(composed, trained("dpo"), tmp_path / "own", **chat, baseline=judge)


REFUSED = {
    "judge_model=null": {},
    "is no reward model": {"judge_model": "embedded"},
    "is a reward model": {"judge": "chat"},
    "writes no answers": {"baseline": "{reward}"},
    "no such file": {"baseline": "gone.jsonl"},
    "cannot be read": {"rubric": "gone.txt"},
    "name of a contestant": {"judge": "endpoint", "judge_model": "dpo"},
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_cannot_be_judged_is_refused_before_anything_is_written(composed, trained, tmp_path, problem):
    reward = str(trained("reward").path)
    known = {"judge": "reward", **({"judge_model": reward} if REFUSED[problem] else {}), **REFUSED[problem]}
    given = {name: str(value).format(reward=reward) for name, value in known.items()}
    with pytest.raises(UserError, match=problem):
        judged(composed, trained("dpo"), tmp_path / "refused", **given)
    assert not (tmp_path / "refused").exists()


def test_local_judges_say_what_plain_transformers_computes(composed, trained):
    """The reward model's scores, and the chat model's next token after the rubric."""
    spec = composed([*TINY, "action=evaluate"])
    console = Console(quiet=True)
    pair = Pair(({"role": "user", "content": "Which sea?"},), "The red one.", "None at all, my friend.")
    reward = RewardJudge(find_candidate(spec, str(trained("reward").path)), console)
    (said,) = reward.probabilities([pair], "pair")
    plain = AutoModelForSequenceClassification.from_pretrained(trained("reward").model)
    tokenizer = AutoTokenizer.from_pretrained(trained("reward").model)
    scores = []
    for answer in (pair.answer, pair.other):
        messages = [*pair.prompt, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
        ids = ids[:, : 1 + (ids[0] == tokenizer.eos_token_id).nonzero()[-1]]
        with torch.no_grad():
            scores.append(float(plain(ids).logits))
    assert said == pytest.approx(1 / (1 + np.exp(scores[1] - scores[0])), abs=1e-5)
    folder = locate_model(composed(["model=tiny"]).model)
    chat = ChatJudge(find_candidate(spec, str(folder)), RUBRIC, console)
    (said,) = chat.probabilities([pair], "pair")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages = judge_messages(pair, RUBRIC, may_tie=False)
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": False}
    ids = tokenizer.apply_chat_template(messages, **options)
    with torch.no_grad():
        chances = model(ids).logits[0, -1].softmax(-1)[[tokenizer.encode(letter)[-1] for letter in "AB"]]
    assert said == pytest.approx(float(chances[0] / chances.sum()), abs=1e-5)
    assert chat.letter_mass == [pytest.approx(float(chances.sum()), rel=1e-3)]
