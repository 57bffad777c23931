"""A search chooses cells by earlier results and can be resumed; a mistake is reported before it starts."""

from __future__ import annotations

import json

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from alignment_lab.config import METHOD_SCHEMAS, Direction, compose, objective_of, objective_value
from alignment_lab.report.study.runs import find_runs, load_record
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.files import read_json
from alignment_lab.sweep.grid import compose_grid
from alignment_lab.sweep.preflight import grid_cells
from alignment_lab.sweep.search.space import parse_space
from alignment_lab.sweep.search.sweeper import RESULT, STUDY, tell_own_scale

SHORT = [
    *("model=tiny", "data=embedded", "tracking=local", "parallel.device=cpu"),
    *("training.max_steps=1", "training.global_batch=4", "eval.rows=8", "eval.generations=0"),
]
SEARCH = ["--multirun", "hydra/sweeper=optuna", "hydra.sweep.dir=found", "hydra.sweeper.sampler=random"]


# ---- the objective


def test_the_default_objective_is_comparable_between_methods_where_they_allow_it(composed):
    objectives = {name: objective_of(composed([f"method={name}"])) for name in METHOD_SCHEMAS}
    others = {"sft": "eval_loss", "cpt": "eval_loss", "reward": "eval_accuracy"}
    assert {name: objective for name, (objective, _) in objectives.items()} == dict.fromkeys(
        METHOD_SCHEMAS, "eval_implicit_rewards/accuracies"
    ) | others
    assert {name for name, (_, direction) in objectives.items() if direction is Direction.minimize} == {
        "sft",
        "cpt",
    }


def test_the_objective_and_its_direction_can_be_set(composed):
    assert objective_of(composed(["eval.objective=eval_loss"])) == ("eval_loss", Direction.minimize)
    assert objective_of(composed(["eval.objective=eval_rewards/margins"])) == (
        "eval_rewards/margins",
        Direction.maximize,
    )
    assert objective_of(composed(["eval.objective=answers/words", "eval.direction=maximize"])) == (
        "answers/words",
        Direction.maximize,
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("eval.objective=eval_los", "eval.objective=eval_los: method=dpo measures eval_loss, "),
        ("eval.objective=eval_los", "did you mean eval_loss?"),
        (
            "method=sft eval.objective=eval_rewards/accuracies",
            "method=sft measures eval_loss, eval_mean_token_accuracy, answers/correct",
        ),
        (
            "method=reward eval.objective=answers/words",
            "method=reward measures eval_loss, eval_accuracy, eval_margin, eval_mean_reward",
        ),
        ("eval=none eval.objective=eval_loss", "it is not measured while eval.rows=0; set eval.rows."),
        (
            "eval.generations=0 eval.objective=answers/words",
            "it is not measured while eval.generations=0; set eval.generations.",
        ),
        ("eval.direction=up", "minimize"),
    ],
)
def test_an_objective_that_is_not_measured_is_refused(overrides, message, error_message):
    assert message in error_message(overrides)


@pytest.mark.parametrize(
    ("objective", "varied", "told"),
    [
        ("eval_loss", ("beta=0.1", "beta=0.2"), True),
        ("eval_rewards/accuracies", ("method=dpo", "method=simpo"), True),
        ("eval_loss", ("training.learning_rate=1e-5", "training.learning_rate=1e-4"), False),
        ("null", ("method=dpo", "method=simpo"), False),
    ],
)
def test_a_search_over_methods_by_a_number_of_their_own_is_told(objective, varied, told, composed, capsys):
    tell_own_scale([composed([f"eval.objective={objective}", override]) for override in varied])
    output = capsys.readouterr().out
    assert output.startswith(f"warning: eval.objective={objective} is on the scale") == told == bool(output)
    assert ("eval_implicit_rewards/accuracies means the same" in output) == told


def test_the_objective_is_read_from_the_report(composed):
    report = {
        "metrics": {
            "eval_loss": {"before": {"value": 0.7}, "after": {"value": 0.5}},
            "answers/correct": {"before": None, "after": None},
        }
    }
    assert objective_value(composed(["eval.objective=eval_loss"]), report) == 0.5
    assert objective_value(composed(["eval.objective=answers/correct"]), report) is None
    assert objective_value(composed([]), report) is None and objective_value(composed([]), None) is None


# ---- what is searched


def test_swept_settings_are_dimensions_and_others_stay():
    space = parse_space(
        [
            "beta=tag(log,interval(0.01,0.5))",
            "training.global_batch=range(8,33,8)",
            "training.warmup_steps=int(interval(0,5))",
            "method=dpo,ipo",
            "eval.rows=4,8",
            "training.seed=1",
            "eval.rows=16",
        ]
    )
    assert sorted(space.fixed) == ["eval.rows=16", "training.seed=1"]
    assert space.bounds == {
        "beta": (0.01, 0.5, None, True),
        "training.global_batch": (8, 32, 8, False),
        "training.warmup_steps": (0, 5, None, False),
    }
    assert space.choices == {"method": ["dpo", "ipo"]}
    kinds = {key: type(distribution).__name__ for key, distribution in space.distributions().items()}
    assert kinds == {
        "beta": "FloatDistribution",
        "training.global_batch": "IntDistribution",
        "training.warmup_steps": "IntDistribution",
        "method": "CategoricalDistribution",
    }
    assert space.overrides(
        {"beta": 0.1, "training.global_batch": 16, "training.warmup_steps": 2, "method": "ipo"}
    )[-4:] == [
        "beta=0.1",
        "training.global_batch=16",
        "training.warmup_steps=2",
        "method=ipo",
    ]


def test_corners_take_every_choice_and_both_ends():
    corners = parse_space(["beta=interval(0.01,0.5)", "method=dpo,ipo,kto", "training.seed=1"]).corners()
    assert {word for corner in corners for word in corner} == {
        "beta=0.01",
        "beta=0.5",
        "method=dpo",
        "method=ipo",
        "method=kto",
        "training.seed=1",
    }
    assert len(corners) == 4


@pytest.mark.parametrize("words", [["beta=0.1"], ["beta=interval(0.5,0.1)"], ["beta=tag(log,interval(0,1))"]])
def test_an_invalid_space_is_refused(words):
    with pytest.raises(UserError):
        parse_space(words)


# ---- files that sweep


def grid_of(option: str, *more: str) -> list[list[str]]:
    """The cells of `--multirun recipe=OPTION`, composed and checked."""
    compose.register_with_hydra()
    with initialize_config_dir(str(compose.CONF), version_base="1.3"):
        config = (
            GlobalHydra.instance()
            .config_loader()
            .load_configuration("config", [f"recipe={option}", *more], run_mode=None)
        )
        params = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
        grid = grid_cells([*params, f"recipe={option}", *more], GlobalHydra.instance().config_loader())
        specs = compose_grid(grid, "config")
    assert len({spec.run_id for spec in specs}) == len(grid)
    return grid


def test_a_recipe_may_be_a_sweep():
    grid = grid_of("sweep/beta")
    assert len(grid) == 2 * 4 * 3
    assert {word for cell in grid for word in cell if word.startswith("training.seed")} == {
        f"training.seed={seed}" for seed in range(3)
    }
    assert len(grid_of("sweep/beta", "training.seed=1")) == 2 * 4


def test_seeds_are_an_axis():
    assert grid_cells(["training.seed=range(5)", "method=dpo,ipo"]) == [
        [f"training.seed={seed}", f"method={method}"] for seed in range(5) for method in ("dpo", "ipo")
    ]


# ---- the command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["method=dpo,sft", "training.learning_rate=interval(1e-6,1e-5)"],
            "the cells would be measured by eval_implicit_rewards/accuracies and eval_loss",
        ),
        (["beta=interval(-0.1,0.5)"], "method.beta=-0.1: must be above 0"),
        (["method=dpo,nope"], "nope"),
        (["beta=0.1"], "nothing is searched"),
        (["beta=interval(0.1,0.5)", "eval.rows=0"], "it is not measured while eval.rows=0"),
        (
            ["beta=interval(0.1,0.5)", "hydra.sweeper.n_trials=0"],
            "hydra.sweeper.n_trials=0: must be a whole number above 0",
        ),
        (
            ["beta=interval(0.1,0.5)", "hydra.sweeper.sampler=best"],
            "hydra.sweeper.sampler=best: give one of tpe, random",
        ),
        (["beta=interval(0.1,0.5)", "training.lerning_rate=1"], "did you mean training.learning_rate?"),
    ],
)
def test_a_mistake_is_reported_before_anything_starts(words, message, call_main, tmp_path):
    given = {word.partition("=")[0] for word in words}
    defaults = [word for word in (*SEARCH, *SHORT) if word.partition("=")[0] not in given]
    ended = call_main(*defaults, *words)
    assert (ended.code, len(ended.errors)) == (2, 1), ended.errors
    assert message in ended.errors[0]
    assert not list((tmp_path / "here").rglob("run.json"))


def test_a_mistake_needs_no_torch(run_command):
    ended = run_command(*SEARCH, *SHORT, "beta=interval(0.1,0.5)", "training.lerning_rate=1")
    assert (ended.code, len(ended.errors)) == (2, 1) and "torch" not in ended.imported


def test_a_search_is_resumed_and_ends_with_the_best(run_command, tmp_path):
    """Two trials, of which the second is then interrupted; then the same command with one more."""
    words = [
        *SEARCH,
        *SHORT,
        "training.learning_rate=tag(log,interval(1e-5,1e-2))",
        "eval.objective=eval_rewards/margins",
    ]
    first = run_command(*words, "hydra.sweeper.n_trials=2")
    folder = tmp_path / "here" / "found"
    assert first.code == 0, first.errors
    assert "best of 2: eval_rewards/margins" in first.output
    before = read_json(folder / RESULT)
    assert [trial["state"] for trial in before["trials"]] == ["complete", "complete"]

    lines = (folder / STUDY).read_text().splitlines()
    # op_code 6 sets a trial's state and value: the command was killed before it told the study
    last_result = max(index for index, line in enumerate(lines) if json.loads(line)["op_code"] == 6)
    (folder / STUDY).write_text("".join(f"{line}\n" for line in lines[:last_result]))
    again = run_command(*words, "hydra.sweeper.n_trials=3")
    assert again.code == 0, again.errors
    result = read_json(folder / RESULT)
    assert result["trials"][:2] == before["trials"] and len(result["trials"]) == 3
    assert "this experiment is finished" in again.output  # the second trial's cell was
    assert len({trial["params"]["training.learning_rate"] for trial in result["trials"]}) == 3
    best = max(result["trials"], key=lambda trial: trial["value"])
    assert (result["best"], result["objective"], result["direction"]) == (
        best["number"],
        "eval_rewards/margins",
        "maximize",
    )
    folders = [run.path.name for run in find_runs(folder)]
    assert sorted(folders) == sorted(
        f"training.learning_rate={trial['params']['training.learning_rate']}" for trial in result["trials"]
    )
    values = {
        str(load_record(run).spec["training"]["learning_rate"]): load_record(run).after(
            "eval_rewards/margins"
        )["value"]
        for run in find_runs(folder)
    }
    assert values == {
        str(trial["params"]["training.learning_rate"]): trial["value"] for trial in result["trials"]
    }

    other = run_command(*words, "training.seed=7", "hydra.sweeper.n_trials=3")
    assert other.code == 2 and "another search lies there" in other.errors[-1]


def test_a_failed_trial_lets_the_search_go_on_and_many_in_a_row_end_it(run_command, tmp_path):
    broken = [
        *SEARCH,
        *SHORT,
        "hydra.sweeper.n_trials=9",
        "hydra.sweeper.max_failures=2",
        "data=hub",
        "data.path=nobody/nothing",
    ]
    ended = run_command(*broken, "beta=interval(0.1,0.5)")
    assert ended.code == 1 and "2 trials failed in a row" in ended.errors[-1]
    trials = read_json(tmp_path / "here" / "found" / RESULT)["trials"]
    assert [trial["state"] for trial in trials] == ["fail", "fail"]
