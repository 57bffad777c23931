"""Every option composes, every number has a range, and an experiment is the same wherever it is written."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from alignment_lab import config
from alignment_lab.config.compose import (
    CONF,
    compose_experiment,
    errors_as_sentences,
    register_with_hydra,
)
from alignment_lab.config.metrics import METRICS
from alignment_lab.sweep.grid import compose_grid

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(file for file in CONF.glob("*/**/*.yaml") if file.relative_to(CONF).parts[0] != "hydra")
# "method/dpo", "recipe/zephyr-7b-beta/dpo"
# Datasets' sources are composed all at once by tests/test_source_options.py
OPTIONS = [str(file.relative_to(CONF).with_suffix("")) for file in FILES if file.parent.name != "source"]
OPTIONS += [f"data/source/{name}" for name in ("local", "hub", "embedded", "hh_rlhf")]
NEEDS = {
    "data/local": ["data.path=rows.jsonl"],
    "data/hub": ["data.path=org/name"],
    "model/hub": ["model.path=org/name"],
    "data/mixture": ["+data/source@data.sources.one=embedded"],
    "data/source/local": ["data.sources.one.path=rows.jsonl"],
    "data/source/hub": ["data.sources.one.path=org/name"],
}


@pytest.fixture
def rows_here(tmp_path, monkeypatch):
    """A working directory with the file that options and their examples speak of."""
    (tmp_path / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)


# ---- options


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_so_does_the_call_in_its_comment(option, composed, rows_here):
    group, _, name = option.partition("/")
    choice = [f"{group}={name}"]
    if option.startswith("data/source/"):
        choice, name = ["data=mixture", f"+data/source@data.sources.one={option.split('/')[2]}"], "mixture"
    overrides = [*choice, *NEEDS.get(option, [])]
    settings = getattr(composed(overrides), group, None)
    assert getattr(settings, "name", name) == name or (group, name) == ("training", "default")
    comment = re.match(r"(#.*\n)+", (CONF / f"{option}.yaml").read_text())
    call = re.search(r"python train\.py (.+)", comment[0]) if comment else None
    assert call or group == "tracking", "say in the first comment how the option is called"
    if call and shlex.split(call[1]) != overrides:
        composed([word for word in shlex.split(call[1]) if not word.startswith("--")])


def own_values(option: str) -> dict[str, Any]:
    """What the option's file sets, by dotted keys."""
    settings = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    return config.flatten({key: value for key, value in settings.items() if key != "defaults"})


@pytest.mark.parametrize("option", [option for option in OPTIONS if not option.startswith("recipe/")])
def test_no_option_repeats_a_default_of_its_schema(option):
    """A second copy of a default would drift. Learning rates and shapes have none."""
    group, _, name = option.partition("/")
    group = "source" if option.startswith("data/source/") else group
    schemas = {**config.GROUPS, "source": config.Source, "method": config.METHOD_SCHEMAS.get(name)}
    groups = ("method", "training") if group == "method" else (group,)  # a method's option sets both
    schema_values = {
        group: OmegaConf.to_container(OmegaConf.structured(schemas[group]), enum_to_str=True)
        for group in groups
    }
    defaults = config.flatten(schema_values)
    prefix = "" if group == "method" else f"{group}."
    repeated = {
        key: value
        for key, value in own_values(option).items()
        if defaults.get(f"{prefix}{key}", ...) == value
    }
    assert repeated == {}


def test_groups_are_the_folders():
    folders = {file.relative_to(CONF).parts[0] for file in FILES}
    assert folders - {"recipe"} == {*config.GROUPS, "method"}
    assert all(any(option.startswith(f"{group}/") for option in OPTIONS) for group in folders)


def test_the_three_tables_of_methods_are_one():
    from alignment_lab.methods import METHODS

    options = {option.partition("/")[2] for option in OPTIONS if option.startswith("method/")}
    assert options == set(config.METHOD_SCHEMAS) == set(METHODS)
    assert {name: schema().name for name, schema in config.METHOD_SCHEMAS.items()} == {
        name: name for name in config.METHOD_SCHEMAS
    }


@pytest.mark.parametrize("name", config.METHOD_SCHEMAS)
def test_a_methods_option_leaves_the_defaults_of_its_dataclass_and_sets_the_rate(name, composed):
    spec = composed([f"method={name}"])
    assert type(spec.method) is config.METHOD_SCHEMAS[name]
    assert spec.method == config.METHOD_SCHEMAS[name]()
    assert spec.training.learning_rate == usual_rate(name) > 0


def test_f_divergences_are_defined_where_only_the_difference_of_rewards_counts():
    """TRL's list of losses for which f-DPO is defined, under our names."""
    divergent = {
        name for name, method in config.METHOD_SCHEMAS.items() if issubclass(method, config.Divergent)
    }
    assert divergent == {"dpo", "robust_dpo", "ld_dpo", "dpo_norm", "ipo", "hinge", "exo", "discopop"}


def test_what_a_method_needs_and_gives():
    facts = {
        name: (m.format.name, m.needs_reference, m.couples_rows, m.generates)
        for name, m in config.METHOD_SCHEMAS.items()
    }
    others = {
        "sft": ("conversation", False, False, True),
        "cpt": ("text", False, False, True),
        "reward": ("preference", False, False, False),
        "orpo": ("preference", False, False, True),
        "simpo": ("preference", False, False, True),
        "alphapo": ("preference", False, False, True),
        "cpo": ("preference", False, False, True),
        "aot": ("preference", True, True, True),
        "kto": ("unpaired", True, False, True),
        "bco": ("unpaired", True, False, True),
    }
    assert facts == dict.fromkeys(config.METHOD_SCHEMAS, ("preference", True, False, True)) | others


@pytest.mark.parametrize("name", config.METHOD_SCHEMAS)
def test_every_metric_of_a_method_is_in_the_table(name):
    metrics = config.METHOD_SCHEMAS[name]().metrics
    assert metrics[0] == "loss" and len(set(metrics)) == len(metrics)
    assert set(metrics) <= set(METRICS)


def test_the_nll_is_a_metric_where_it_is_a_term_of_the_loss():
    with_nll = {name for name, schema in config.METHOD_SCHEMAS.items() if "nll_loss" in schema().metrics}
    assert with_nll == {"mpo", "orpo", "cpo"}
    assert "nll_loss" in config.DPO(sft_weight=0.1).metrics
    assert "nll_loss" not in config.ORPO(sft_weight=0.0).metrics


def test_what_a_pairwise_method_scores_otherwise_is_a_fact_of_its_settings():
    """LD-DPO's alpha weighs the longer answer's excess; ORPO's NLL covers the prompt unless switched off."""
    pairwise = [schema() for schema in config.METHOD_SCHEMAS.values() if issubclass(schema, config.Pairwise)]
    assert {method.name for method in pairwise if method.length_damping is not None} == {"ld_dpo"}
    assert {method.name for method in pairwise if method.scores_prompt} == {"orpo"}
    assert config.LDDPO(alpha=0.0).length_damping == 0.0
    assert not config.ORPO(prompt_loss=False).scores_prompt
    assert not config.ORPO(sft_weight=0.0).scores_prompt


# ---- beta


@pytest.mark.parametrize("name", config.METHOD_SCHEMAS)
def test_beta_reaches_every_method_that_has_one_and_no_other(name, composed, error_message):
    if any(f.name == "beta" for f in fields(config.METHOD_SCHEMAS[name])):
        spec = composed([f"method={name}", "beta=0.25"])
        assert (spec.method.beta, spec.beta) == (0.25, None)
    else:
        others = ", ".join(other for other in config.METHOD_SCHEMAS if other not in ("sft", "cpt", "reward"))
        assert (
            error_message(f"method={name} beta=0.25")
            == f"beta=0.25: method={name} has no beta; leave it out, or use one of: {others}."
        )


# ---- ranges

RANGES = {
    "training.learning_rate": [("0", "above 0"), ("-1e-5", "above 0"), ("nan", "above 0")],
    "training.num_train_epochs": [("0", "above 0"), ("-1", "above 0"), ("nan", "above 0")],
    "training.max_steps": [("0", "above 0, or -1 for whole epochs"), ("-2", "above 0, or -1")],
    "training.global_batch": [("0", "above 0"), ("-8", "above 0")],
    "training.micro_tokens": [("0", "above 0"), ("-1", "above 0")],
    "parallel.processes": [("0", "above 0"), ("-1", "above 0")],
    "parallel.nodes": [("0", "above 0"), ("-2", "above 0")],
    "parallel.rank": [("0", "above 0"), ("-8", "above 0")],
    "parallel.alpha": [("0", "above 0"), ("-16", "above 0")],
    "training.warmup_steps": [("-0.1", "0 or more"), ("nan", "0 or more")],
    "training.weight_decay": [("-0.1", "0 or more"), ("nan", "0 or more")],
    "training.max_grad_norm": [("-1", "0 or more"), ("nan", "0 or more")],
    "training.seed": [("-1", "0 or more")],
    "training.logging_steps": [("0", "above 0")],
    "training.eval_steps": [("0", "above 0"), ("-1", "above 0")],
    "training.save_steps": [("0", "above 0")],
    "training.save_total_limit": [("0", "above 0")],
    "training.max_nonfinite": [("-1", "0 or more")],
    "training.watchdog_minutes": [("0", "above 0, or null"), ("-1", "above 0, or null")],
    "training.dataloader_num_workers": [("-1", "0 or more")],
    "data.eval_fraction": [
        ("0", "above 0 and below 1"),
        ("1", "above 0 and below 1"),
        ("-0.5", "above 0 and below 1"),
        ("nan", "above 0 and below 1"),
    ],
    "data.max_bad_fraction": [
        ("-0.1", "between 0 and 1"),
        ("1.1", "between 0 and 1"),
        ("nan", "between 0 and 1"),
    ],
    "data.rows": [("0", "above 0"), ("-1", "above 0")],
    "data.mixture_seed": [("-1", "between 0 and"), ("4294967296", "between 0 and")],
    "data.max_length": [("7", "at least 8"), ("-1", "at least 8")],
    "eval.rows": [("-1", "0 or more")],
    "eval.generations": [("-1", "0 or more")],
    "eval.max_new_tokens": [("0", "above 0")],
    "eval.batch": [("0", "above 0")],
    "method.beta": [("0", "above 0"), ("-0.1", "above 0"), ("nan", "above 0")],
    "method.label_smoothing": [("0.5", "[0, 0.5)"), ("-0.1", "[0, 0.5)"), ("nan", "[0, 0.5)")],
    "model.shape.kv_heads": [("2", "divide the 9 heads"), ("0", "above 0")],
} | {  # a shape is given whole, so each of its numbers is wrong beside eight good ones
    f"model.shape.{key}": [("0", "above 0")]
    for key in ("layers", "hidden", "intermediate", "heads", "head_dim", "vocabulary")
}


SOURCE = "data=mixture +data/source@data.sources.one=embedded data.sources.one."
SOURCE_RANGES = {
    "weight": [("0", "above 0"), ("-1", "above 0"), ("nan", "above 0"), ("inf", "above 0")],
    "fraction": [("0", "above 0 and at most 1"), ("1.5", "repeat"), ("nan", "above 0 and at most 1")],
    "count": [("0", "above 0"), ("-3", "above 0")],
    "repeat": [("0", "above 0"), ("-1", "above 0")],
}
METHOD_RANGES = {  # of what not every method has
    "sft_weight": [("dpo", "-1", "0 or more"), ("mpo", "inf", "0 or more")],
    "divergence_alpha": [
        ("dpo", "0", "between 0 and 1"),
        ("ipo", "1", "between 0 and 1"),
        ("hinge", "nan", "between 0 and 1"),
    ],
    "label_smoothing": [
        ("exo", "0", "between 0 and 0.5"),
        ("exo", "0.5", "between 0 and 0.5"),
        ("aot", "0.5", "[0, 0.5)"),
    ],
    "alpha": [
        ("ld_dpo", "-0.1", "in [0, 1]"),
        ("ld_dpo", "1.1", "in [0, 1]"),
        ("ld_dpo", "nan", "in [0, 1]"),
        ("alphapo", "0", "method=simpo"),
        ("alphapo", "inf", "must not be 0"),
    ],
    "tau": [("discopop", "0", "in (0, 1]"), ("discopop", "1.1", "in (0, 1]")],
    "gamma": [("simpo", "-0.1", "0 or more"), ("simpo", "inf", "0 or more")],
    "centering": [("reward", "-1", "0 or more"), ("reward", "nan", "0 or more")],
    "desirable_weight": [("kto", "0", "above 0, or null"), ("kto", "inf", "above 0, or null")],
    "undesirable_weight": [("kto", "0", "above 0, or null"), ("kto", "-1", "above 0, or null")],
    "objectives.dpo": [("mpo", "-1", "0 or more"), ("mpo", "nan", "0 or more")],
    "beta": [
        ("simpo", "0", "no reward"),
        ("orpo", "0", "method=sft"),
        ("kto", "0", "nothing holds the policy"),
        ("bco", "-1", "above 0"),
    ],
}
NUMBERS = (
    [(key, f"{key}={value}", phrase) for key, cases in RANGES.items() for value, phrase in cases]
    + [
        (f"method.{key}", f"method={method} method.{key}={value}", phrase)
        for key, cases in METHOD_RANGES.items()
        for method, value, phrase in cases
    ]
    + [
        (f"data.sources.one.{key}", f"{SOURCE}{key}={value}", phrase)
        for key, cases in SOURCE_RANGES.items()
        for value, phrase in cases
    ]
)


@pytest.mark.parametrize(("key", "override", "phrase"), NUMBERS)
def test_a_number_out_of_its_range_is_refused(key, override, phrase, error_message):
    """The sentence begins with the key and the value, and goes on with what it must be."""
    sentence, value = error_message(override), override.rpartition("=")[2]
    match = re.match(rf"{re.escape(key)}=(\S+): (.+)\.$", sentence)
    assert match, sentence
    assert float(match[1]) == float(value) or (match[1], value) == ("nan", "nan")
    assert phrase in match[2]


@pytest.mark.parametrize(
    "override",
    [
        "beta=inf",
        "training.learning_rate=inf",
        "training.num_train_epochs=inf",
        "training.weight_decay=inf",
        "training.warmup_steps=inf",
    ],
)
def test_infinity_is_no_setting(override, error_message):
    assert error_message(override).rpartition("=")[0].endswith(override.partition("=")[0])


def test_a_seed_that_numpy_cannot_take_is_refused(error_message):
    """numpy.random.seed takes 0 to 2**32 - 1; what is larger would be a traceback once torch is loaded."""
    assert "training.seed=4294967296: " in error_message("training.seed=4294967296")


def number_keys(schema: type, prefix: str) -> list[str]:
    annotations = get_type_hints(schema)
    return [
        f"{prefix}.{field.name}"
        for field in fields(schema)
        if {int, float} & {annotations[field.name], *get_args(annotations[field.name])}
    ]


def test_every_number_that_can_be_set_has_a_range():
    schemas = (
        [("method", method) for method in config.METHOD_SCHEMAS.values()]
        + list(config.GROUPS.items())
        + [("model.shape", config.Shape), ("data.sources.one", config.Source)]
    )
    ranges = {
        *RANGES,
        *(f"data.sources.one.{key}" for key in SOURCE_RANGES),
        *(f"method.{key.partition('.')[0]}" for key in METHOD_RANGES),
    }
    assert {key for group, schema in schemas for key in number_keys(schema, group)} == ranges


@pytest.mark.parametrize("name", config.METHOD_SCHEMAS)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_every_number_of_every_method_is_checked(name, value):
    """None that it inherits is forgotten where it checks its own. AlphaPO's alpha may be negative."""
    method = config.METHOD_SCHEMAS[name]
    for key in (key.partition(".")[2] for key in number_keys(method, "method")):
        if (name, key, value) == ("alphapo", "alpha", -1.0):
            continue
        with pytest.raises(config.SpecError, match=rf"^method\.{key}"):
            method(**{key: value if key != "objectives" else {"dpo": value}})


EDGES = [  # of each range, and of several at once
    "data.max_length=8 training.seed=0 training.max_steps=-1 training.warmup_steps=0 training.weight_decay=0 "
    "training.max_grad_norm=0",
    "training.seed=4294967295 training.max_steps=1 training.warmup_steps=10 training.micro_tokens=1 "
    "training.eval_steps=1",
    "training.global_batch=7 eval.rows=0 eval.generations=0 method.label_smoothing=0 method.beta=1e-9 "
    "model.shape=null",
    "method.label_smoothing=0.49 data.eval_fraction=0.99 model.dtype=bfloat16 training.save_steps=1 "
    "training.save_total_limit=1",
    "method=ld_dpo method.alpha=0 method.sft_weight=0 method.divergence=alpha method.divergence_alpha=0.01 "
    "method.wpo=true",
    "method=ld_dpo method.alpha=1 method.divergence=js method.label_smoothing=0",
    "method=discopop method.tau=1 method.divergence=forward_kl",
    "method=simpo method.gamma=0 method.sft_weight=0.5",
    "method=kto method.desirable_weight=null method.undesirable_weight=1e-3",
    "method=mpo method.objectives.dpo=0 method.objectives.ipo=0.5 method.sft_weight=0",
]


@pytest.mark.parametrize("overrides", EDGES)
def test_the_edge_of_a_range_is_inside(overrides, composed):
    assert composed(overrides.split()).run_id


# ---- the learning rate, which the method's option sets


def usual_rate(name: str) -> float:
    """The learning rate that the method's option sets."""
    return float(own_values(f"method/{name}")["training.learning_rate"])


def test_the_learning_rate_is_the_methods_unless_set(composed):
    for words in (
        ["method=simpo", "training.learning_rate=3e-4"],
        ["training.learning_rate=3e-4", "method=sft"],
    ):
        assert composed(words).training.learning_rate == 3e-4


def test_the_learning_rate_of_each_method():
    """A change of one changes what `method=NAME` alone trains: it must be meant."""
    rates = {name: usual_rate(name) for name in config.METHOD_SCHEMAS}
    lower = dict.fromkeys(["dpo_norm", "discopop", "sppo", "bco_pair", "simpo", "alphapo", "bco"], 5e-7)
    others = {"sft": 2e-5, "cpt": 2e-5, "reward": 1e-5, "orpo": 5e-6} | lower
    assert rates == dict.fromkeys(config.METHOD_SCHEMAS, 1e-6) | others


def test_a_null_learning_rate_is_refused(error_message):
    assert error_message("training.learning_rate=null") == (
        "training.learning_rate=null: must be a number; leave it out for its default, 1e-06."
    )


@pytest.mark.parametrize(
    "override",
    [
        "data=local data.path=LINK",
        "data=local data.path=LINK/rows.jsonl",
        "data=local data.path=. data.eval_path=LINK",
        "data=mixture +data/source@data.sources.a=local data.sources.a.path=LINK",
        "data=mixture +data/source@data.sources.a=local data.sources.a.path=. data.sources.a.eval_path=LINK",
        "data.clean.benchmarks=[LINK]",
        "model=hub model.path=LINK",
        "model=hub model.path=link",
        "model.init_adapter=LINK",
        "model.chat_template=LINK",
    ],
)
def test_a_link_to_nothing_is_called_one(override, error_message, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("gone")
    monkeypatch.chdir(tmp_path)
    sentence = error_message(override.replace("LINK", f"{tmp_path}/link"))
    assert "link is a link to gone, which is not there; give" in sentence.replace(": it is", "link is")


@pytest.fixture
def own_options(tmp_path):
    """Composes with options of the user's own, given by their paths and texts."""

    def compose(options: dict[str, str], *overrides: str) -> config.Experiment:
        for path, text in options.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text)
        register_with_hydra()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose_experiment([f"hydra.searchpath=[file://{tmp_path}]", *overrides])

    return compose


OWN_METHODS = {
    "of a schema": """
# @package _global_
defaults: [/schema/method/ipo@method, _self_]
method: {beta: 0.7}
training: {learning_rate: 4e-6, warmup_steps: 3}
""",
    "of an option": """
defaults: [ipo, _self_]
beta: 0.7
""",
}


@pytest.mark.parametrize(
    ("kind", "rate", "warmup"), [("of a schema", 4e-6, 3.0), ("of an option", 1e-6, 0.1)]
)
def test_a_users_own_method_option_sets_a_learning_rate(kind, rate, warmup, own_options):
    files = {"method/mine.yaml": OWN_METHODS[kind].lstrip()}
    spec = own_options(files, "method=mine")
    assert (spec.method.name, spec.method.beta) == ("ipo", 0.7)
    assert (spec.training.learning_rate, spec.training.warmup_steps) == (rate, warmup)
    assert own_options(files, "method=mine", "training.learning_rate=1").training.learning_rate == 1


def test_a_method_option_without_a_learning_rate_says_which_key_to_set(own_options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "method=mine"])
    files = {"method/mine.yaml": "defaults: [/schema/method/ipo@_here_]\n"}
    with pytest.raises(SystemExit), errors_as_sentences():
        own_options(files, "method=mine")
    sentence = "training.learning_rate: it has no value; set it: training.learning_rate=VALUE."
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert own_options(files, "method=mine", "training.learning_rate=1").training.learning_rate == 1


@pytest.mark.parametrize("schema", ["", "defaults: [/schema/training@_here_, _self_]\n"])
def test_a_training_option_and_a_recipe_win_over_the_method(schema, own_options):
    files = {
        "training/mine.yaml": f"{schema}learning_rate: 3e-6\n",
        "training/other.yaml": f"{schema}seed: 3\n",
        "recipe/mine.yaml": "# @package _global_\n"
        "defaults: [{override /method: sft}]\n"
        "training: {learning_rate: 5e-6}\n",
    }
    assert own_options(files, "training=mine", "method=simpo").training.learning_rate == 3e-6
    assert own_options(files, "training=other", "method=simpo").training.learning_rate == 5e-7
    assert own_options(files, "training=mine", "recipe=mine").training.learning_rate == 5e-6
    assert own_options(files, "recipe=mine", "training.learning_rate=7e-6").training.learning_rate == 7e-6


def test_cells_of_a_grid_have_the_learning_rate_of_their_method_or_their_own(composed):
    grid = [["method=dpo"], ["method=sft"], ["method=sft", "training.learning_rate=3e-4"], ["recipe=demo"]]
    grid += [["training.learning_rate=3e-4", "method=dpo"]]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        rates = [spec.training.learning_rate for spec in compose_grid(grid, "config")]
    assert rates == [1e-6, 2e-5, 3e-4, 3e-5, 3e-4]
    assert rates == [composed(cell).training.learning_rate for cell in grid]


# ---- pairs

PAIRS = [
    (
        "model.attention=flash_attention_2 parallel.device=cpu",
        "model.attention=flash_attention_2: ",
        "model.attention=sdpa",
    ),
    ("model.dtype=float16", "model.dtype=float16: ", "bfloat16"),
    ("eval=none training.eval_steps=5", "training.eval_steps=5: ", "set eval.rows"),
    ("model=embedded model.path=org/name", "model.path=org/name: ", "add model=hub"),
    ("model=tiny model.path=org/name", "model.path=org/name: model=tiny", "add model=hub"),
    ("data=embedded data.path=x.jsonl", "data.path=x.jsonl: ", "add data=local"),
    ("model=hub", "model.path=", "model.path=org/name"),
    ("model=hub model.path=", "model.path=: ", "model.path=org/name"),
    ("model=hub model.path=./nowhere", "model.path=./nowhere: ", "a Hub id"),
    ("data=local", "data.path=", "data.path=rows.jsonl"),
    ("data=local data.path=nowhere.jsonl", "data.path=nowhere.jsonl: ", "looked from"),
    (
        "data=local data.path=rows.jsonl data.eval_path=nowhere.jsonl",
        "data.eval_path=nowhere.jsonl: ",
        "looked from",
    ),
    ("method=sft beta=0.1", "beta=0.1: ", "method=sft has no beta"),
    ("method.name=nope", "method.name=nope: ", "one of sft, cpt"),
    ("name=a/b", "name=a/b: ", "give a name without '/'"),
    ("name=..", "name=..: ", "a directory"),
    ("model=tiny model.shape=null", "model.shape=", "random"),
    ("data=embedded data.eval_path=rows.jsonl", "data.eval_path=rows.jsonl: ", "data=local"),
    ("data=embedded data.streaming=true training.max_steps=1", "data.streaming=true: ", "data=hub"),
    (
        "data=local data.path=rows.jsonl data.streaming=true",
        "data.streaming=true: ",
        "training.max_steps=1000",
    ),
    (
        "data=hub data.path=org/name data.eval_path=rows.jsonl",
        "data.eval_path=rows.jsonl: ",
        "data.eval_split",
    ),
    ("data=embedded data.eval_split=test", "data.eval_split=test: ", "data=hub"),
    ("method=dpo method.name=sft", "method.name=sft: ", "method=sft"),
    ("method=aot method.wpo=true", "method.wpo=true: method=aot", "leave it out"),
    ("method=mpo method.objectives={dpo:0,bco_pair:0}", "method.objectives=all 0: ", "above 0"),
    (
        "method=mpo +method.objectives.aot=1",
        "method.objectives.aot=1.0: no such objective",
        "there are: dpo, robust_dpo",
    ),
]


@pytest.mark.parametrize(("overrides", "begins", "remedy"), PAIRS)
def test_what_cannot_stand_together_is_refused(overrides, begins, remedy, error_message, rows_here):
    sentence = error_message(overrides)
    assert sentence.startswith(begins) and remedy in sentence and sentence.endswith(".")


# ---- one experiment, wherever it is written down

CELLS = [
    "method=sft",
    "beta=0.2",
    "method.label_smoothing=0.1",
    "method.divergence=js",
    "method.sft_weight=0.1",
    "method.wpo=true",
    "method=mpo",
    "method=mpo method.objectives.ipo=0.1",
    "model=tiny",
    "model.dtype=bfloat16",
    "data.max_length=128",
    "parallel.device=cpu",
    "training.seed=1",
    "training.max_steps=5",
    "training.learning_rate=3e-5",
    "model.attention=sdpa",
    "training.optim=sgd",
    "eval.rows=8",
    "recipe=demo",
]


def test_the_run_id_changes_with_all_that_can_change_a_number(composed):
    ids = [composed(cell.split()).run_id for cell in ["", *CELLS]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{12}", id) for id in ids)


SAME = [
    "",
    "name=another",
    "tracking=wandb tracking.tags=[a] tracking.project=p",
    "method=dpo beta=0.1",
    "method.beta=0.1",
    "training.micro_tokens=null training.gradient_checkpointing=null training.learning_rate=0.000001",
    "training.micro_tokens=256 training.gradient_checkpointing=true training.save_steps=10 "
    "training.save_total_limit=1",
    "parallel=ddp parallel.processes=2 parallel.nodes=2 action=plan",
]


def test_the_run_id_is_the_same_for_the_same_numbers(composed):
    """1e-6 is DPO's usual learning rate, and 0.1 its beta."""
    assert len({composed(overrides.split()).run_id for overrides in SAME}) == 1


def test_the_run_id_is_the_same_in_every_process(composed):
    code = (
        "from hydra import initialize_config_dir; from alignment_lab.config.compose import *\n"
        "register_with_hydra()\n"
        "with initialize_config_dir(str(CONF), version_base='1.3'):\n"
        "    print(compose_experiment(['beta=0.2', 'tracking.tags=[b,a]']).run_id)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True
    )
    assert process.stdout.strip() == composed(["beta=0.2"]).run_id, process.stderr


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "method=sft tracking.tags=[a,b] tracking.group=g training.max_steps=5",
        "recipe=demo model=tiny beta=0.2 eval=none",
        "method=mpo method.objectives.dpo=0.5 method.objectives.ipo=0.1",
        "method=ld_dpo method.divergence=alpha method.alpha=0.2",
        "model.revision='1.0' data.split=validation training.learning_rate=3e-5 training.optim=sgd "
        "data.bad_rows=drop model.shape=null",
        "data=mixture +data/source@data.sources.b=hh_rlhf +data/source@data.sources.a=embedded "
        "data.sources.b.weight=3 data.sources.a.weight=0.7 data.rows=9 data.mixture_seed=2 "
        "data.sources.b.repeat=2 "
        "+data.sources.b.columns={prompt:q,messages:null} +data.sources.b.filter={n:{min:3,not:[4,null]}}",
    ],
)
def test_a_written_spec_composes_to_the_same_experiment(cell, composed, tmp_path):
    first = composed(cell.split())
    (tmp_path / "spec.yaml").write_text(config.to_yaml(first))
    again = composed([], folder=tmp_path, name="spec")
    assert again == first
    assert again.run_id == first.run_id
    assert config.to_yaml(again) == config.to_yaml(first)


def test_an_empty_chat_template_is_named(error_message, tmp_path):
    (tmp_path / "f.jinja").touch()
    sentence = f"model.chat_template={tmp_path}/f.jinja: this file is empty; "
    assert error_message(f"model.chat_template={tmp_path}/f.jinja").startswith(sentence)


def test_a_written_spec_keeps_every_text_as_it_is(composed, tmp_path):
    first = composed([])
    first.model.chat_template = '{% for m in messages %}\n\'"{{ m }}": # - é\n{% endfor %}\n'
    first.tracking.tags = ["null", "1e3", "yes", " x ", "a: b", "#"]
    (tmp_path / "spec.yaml").write_text(config.to_yaml(first))
    assert composed([], folder=tmp_path, name="spec") == first


def test_a_written_spec_takes_overrides_and_options(composed, tmp_path):
    (tmp_path / "spec.yaml").write_text(config.to_yaml(composed(["training.seed=3"])))
    spec = composed(["training.max_steps=7", "beta=0.3"], folder=tmp_path, name="spec")
    assert (spec.training.seed, spec.training.max_steps, spec.method.beta) == (3, 7, 0.3)


def test_a_written_spec_is_whole_and_plain(composed):
    """Nothing in it refers elsewhere: no interpolation, no null that stands for another default."""
    first = composed([])
    plain: dict[str, Any] = yaml.safe_load(config.to_yaml(first))
    assert "${" not in config.to_yaml(first)
    assert {key: plain[key] for key in plain if key != "defaults"} == config.to_plain(first)
    assert (plain["training"]["learning_rate"], plain["name"]) == (1e-6, "dpo-embedded")
    nulls = {key for key, value in plain["training"].items() if value is None}
    assert nulls <= {
        "micro_tokens",
        "gradient_checkpointing",
        "eval_steps",
        "save_steps",
        "hub_model_id",
        "hub_revision",
    }  # by device and memory; never; of no Hub


PUBLISHED = {  # parameters in billions, from the models' cards
    "smollm2-135m": 0.135, "smollm2-360m": 0.362, "smollm2-1.7b": 1.71, "qwen3-0.6b": 0.596, "qwen3-8b": 8.19,
    "mistral-7b": 7.24, "llama-3.1-8b": 8.03, "gemma-7b": 8.54, "gpt2": 0.124,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_parameters_of_its_model(name, composed):
    """Attention (q, k, v, o), MLP (three matrices; GPT-2 has two), embeddings (twice where untied).

    Norms and biases are under 1 %.
    """
    shape = composed([f"model={name}"]).model.shape
    attention = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
    mlp = (2 if name == "gpt2" else 3) * shape.hidden * shape.intermediate
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    assert (shape.layers * (attention + mlp) + embeddings) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)
