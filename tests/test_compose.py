"""Every mistake on the command line is one sentence with key, value and remedy; no torch, no files."""

from __future__ import annotations

import re

import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from alignment_lab import __version__
from alignment_lab.config import METHOD_SCHEMAS, known_keys, to_plain
from alignment_lab.config.compose import folder_name, load_experiment
from alignment_lab.config.hydra_errors import describe_hydra_error
from alignment_lab.runtime.errors import UserError
from alignment_lab.sweep.preflight import Preflight, constant_keys, grid_cells

OPTIONS_OF_METHOD = ", ".join(sorted(METHOD_SCHEMAS))  # as Hydra lists files
WITH_BETA = ", ".join(name for name, schema in METHOD_SCHEMAS.items() if hasattr(schema(), "beta"))

# ---- keys that do not exist

KEYS = [
    # misspelt, at each depth
    ("trainng=x", "did you mean training?"),
    ("nme=x", "did you mean name?"),
    ("training.lerning_rate=3", "did you mean training.learning_rate?"),
    ("training.Seed=3", "did you mean training.seed?"),
    ("method.bta=1", "did you mean method.beta?"),
    ("method.label_smothing=0", "did you mean method.label_smoothing?"),
    ("model.shape.layer=3", "did you mean model.shape.layers?"),
    ("dat.path=x", "did you mean data.path or model.path?"),
    # the right name in the wrong place
    ("max_steps=3", "did you mean training.max_steps?"),
    ("learning_rate=2", "did you mean training.learning_rate?"),
    ("seed=3", "did you mean training.seed?"),
    ("model.seed=3", "did you mean training.seed?"),
    ("eval.model=x", "did you mean eval.models?"),
    ("training.max_length=3", "did you mean data.max_length?"),
    ("training.wandb=true", "did you mean tracking.wandb?"),
    ("path=x", "did you mean data.path or model.path?"),
    # with Hydra's prefixes, which would add it
    ("+foo=1", "--cfg job"),
    ("++foo=1", "--cfg job"),
    ("+training.max_stps=2", "did you mean training.max_steps?"),
    ("++training.max_stps=2", "did you mean training.max_steps?"),
    ("+max_steps=2", "did you mean training.max_steps?"),
    ("+model.shape.layer=2", "did you mean model.shape.layers?"),
    ("~training.sead", "did you mean training.seed?"),
    # like nothing that there is
    ("nope=3", "--cfg job"),
    ("training.foo=3", "training has dataloader_num_workers, eval_steps, "),
    ("method.lr=3", "method has "),
]


@pytest.mark.parametrize(("override", "remedy"), KEYS)
def test_a_key_that_does_not_exist_names_the_nearest_that_does(override, remedy, error_message):
    sentence = error_message(override)
    assert sentence.startswith(f"{override.lstrip('+~')}: no such key; ")
    assert remedy in sentence
    assert "\n" not in sentence


def test_each_method_has_its_own_keys(error_message):
    """No other key is suggested: `beta` would be refused as well."""
    sentence = error_message("method=sft method.beta=0.1")
    assert (
        sentence.startswith("method.beta=0.1: ")
        and "method=sft" in sentence
        and "did you mean" not in sentence
    )


@pytest.mark.parametrize("override", ["+method.beta=0.2", "+training.seed=3"])
def test_a_plus_before_a_key_that_exists_is_the_mistake(override, error_message):
    sentence = error_message(override)
    assert override in sentence and "no such key" not in sentence


def test_every_key_that_is_suggested_exists(composed):
    flat = {
        f"{group}.{key}"
        for group, part in to_plain(composed([])).items()
        if isinstance(part, dict)
        for key in part
    }
    assert flat <= set(known_keys())
    assert {"method.beta", "model.shape.layers", "training", "beta"} <= set(known_keys())


# ---- values that do not fit

VALUES = [
    ("training.max_steps=abc", "give a whole number"),
    ("training.max_steps=1.5", "give a whole number"),
    ("training.seed=", "give a whole number"),
    ("training.seed=true", "give a whole number"),
    ("training.seed=[1]", "give a whole number"),
    ("training.seed={a:1}", "give a whole number"),
    ("training.learning_rate=fast", "give a number"),
    ("beta=abc", "give a number"),
    ("method.beta=", "give a number"),
    ("model.shape.layers=x", "give a whole number"),
    ("training.gradient_checkpointing=maybe", "give true or false"),
    ("tracking.wandb=maybe", "give true or false"),
    ("tracking.tags=3", "give a list, as in [a,b]"),
    ("training.max_steps=null", "must be a whole number; leave it out for its default, -1."),
    ("method.beta=null", "must be a number; leave it out for its default, 0.1."),
    ("data.streaming=null", "must be true or false; leave it out for its default, false."),
    ("parallel.adapter=null", "one of [none, lora, dora, rslora]; leave it out for its default, none."),
    ("model.name=null", "must be text; leave it out for its default, embedded."),
    ("tracking.tags=null", "must be a list, as in [a,b]; leave it out for its default, []."),
    ("name=null", "leave it out for its default, ${method.name}-${model.name}."),
    ("data.clean=null", "it is no single value; set data.clean.benchmarks"),
    ("~training.seed", "set it instead"),
    ("~method.beta", "set it instead"),
    ("~beta", "set it instead"),
    ("parallel.targets=[null]", "give a list of text, as in [a,b]"),
    ("method=[dpo,sft]", "a run has one method"),
    ("method=[dpoo,sft]", "give one, or a run with each by --multirun method=dpoo,sft"),
    ("name=", "give a name without '/'"),
    ("model.dtype=float61", "give one of [auto, float32, bfloat16, float16]; did you mean float16?"),
    ("model.dtype=bf16", "did you mean bfloat16?"),
    ("training.optim=adamw", "did you mean adamw_torch?"),
    ("training.lr_scheduler_type=cosin", "did you mean cosine?"),
    ("model.attention=flash", "give one of [shared_prefix, sdpa, eager, flash_attention_2]"),
    ("parallel.device=gpu", "give one of [auto, cpu, cuda]"),
    ("data.bad_rows=ignore", "give one of [error, drop]."),
    ("action=trian", "give one of [train, plan, preview, evaluate]; did you mean train?"),
    ("training.seed=1,2", "--multirun"),
    ("method=dpo,sft", "--multirun"),
    ("data.path=[a,b]", "give text"),
    ("data.path={a:1}", "give text"),
    ("model.shape=3", "model.shape.layers"),
]


@pytest.mark.parametrize(("override", "remedy"), VALUES)
def test_a_value_of_another_kind_says_which_kind(override, remedy, error_message):
    sentence = error_message(override)
    assert override in sentence
    assert remedy in sentence
    assert not re.search(r"full_key|object_type|reference_type|ConfigKey", sentence)  # OmegaConf's own words


@pytest.mark.parametrize(
    "override", ["model.shape.layers=4", "+model.shape.layers=4", "model.shape={layers:4,hidden:64}"]
)
def test_a_model_without_a_shape_has_none_to_change(override, error_message):
    assert error_message(f"model=hub model.path=org/name {override}") == (
        f"{override.lstrip('+')}: model=hub has no shape to change, "
        "as its weights bring their own in config.json; leave it out, "
        "or plan with a model of its size, as model=llama-3.1-8b."
    )


def test_what_is_null_has_no_parts(error_message):
    assert (
        error_message("parallel.targets.x=4")
        == "parallel.targets.x=4: parallel.targets is one value and has no parts; set it as a whole."
    )


OPTIONS = [
    ("method=nope", f"There are: {OPTIONS_OF_METHOD}."),
    ("method=dpoo", "did you mean dpo?"),
    ("training=", "There are: default."),
    ("training=fast", "There are: default."),
    ("model=mistral-7", "did you mean mistral-7b?"),
    ("parallel=zero33", "There are: "),
    ("recipe=nope", "There are: "),
    ("data=Embedded", "did you mean embedded?"),
]


@pytest.mark.parametrize(("override", "remedy"), OPTIONS)
def test_an_option_that_does_not_exist_lists_those_that_do(override, remedy, error_message):
    sentence = error_message(override)
    assert sentence.startswith(f"{override}: no such option")
    assert remedy in sentence
    assert "schema" not in sentence


@pytest.mark.parametrize("override", ["data.path=[a", "x", "beta=0.1,[a", "name=a:b}", "training.seed='1"])
def test_what_cannot_be_read_is_said_with_how_to_write_it(override, error_message):
    sentence = error_message(override)
    assert sentence.startswith(f"{override}: ") and "KEY=VALUE" in sentence


@pytest.mark.parametrize(
    "override", ["~method", "~model", "~data", "method=1", "method=null", "data=null", "+method=1", "=3"]
)
def test_a_group_needs_one_of_its_options(override, error_message):
    sentence = error_message(override)
    assert override in sentence
    assert not re.search("full_key|object_type|Config group", sentence)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.seed=${nope}", "it refers to the key nope, which does not exist"),
        ("name=a-${modell.name}", "the key modell.name, which does not exist; did you mean model.name?"),
        ("data.path=${oc.env:NO_SUCH_VARIABLE}", "the environment variable NO_SUCH_VARIABLE is not set"),
        ("name=${env:HOME}", "an environment variable is ${oc.env:NAME}"),
        ("name=${oc.env:}", "correct it"),
    ],
)
def test_a_reference_to_nothing_names_the_key_and_what_it_refers_to(override, problem, error_message):
    sentence = error_message(override)
    assert sentence.startswith(f"{override}: ") and problem in sentence
    assert not re.search("full_key|object_type|reference_type", sentence)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("beta: lots", "method/mine.yaml: method.beta=lots: give a number."),
        ("beta: {a: 1}", "method/mine.yaml: method.beta={'a': 1}: give a number."),
        ("beta: null", "method/mine.yaml: method.beta=null: must be a number; leave it out for its default"),
        ("betta: 1", "method/mine.yaml: method.betta: no such key; did you mean method.beta?"),
        (
            "divergence: jss",
            "method/mine.yaml: method.divergence=jss: give one of [reverse_kl, forward_kl, js",
        ),
    ],
)
def test_a_mistake_in_an_option_names_its_file(settings, sentence, tmp_path):
    file = tmp_path / "method" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(f"defaults: [dpo]\n{settings}\n")
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_experiment(["method=mine"], config_dir=tmp_path)


def test_any_other_error_of_hydras_is_still_one_line():
    assert describe_hydra_error(RuntimeError("one\n  two\n\nthree")) == "one two three"


# ---- the process

CHEAP = [  # CPU seconds; what answers without torch takes a third of one
    (["method=nope"], f"method=nope: no such option. There are: {OPTIONS_OF_METHOD}."),
    (
        ["training.lerning_rate=3"],
        "training.lerning_rate=3: no such key; did you mean training.learning_rate?",
    ),
    (["beta=-1"], "method.beta=-1.0: must be above 0: at 0 nothing holds the policy to its reference."),
    (
        ["method=sft", "beta=0.1"],
        f"beta=0.1: method=sft has no beta; leave it out, or use one of: {WITH_BETA}.",
    ),
    (["data=local", "data.path=nowhere.jsonl"], "data.path=nowhere.jsonl: no such file or folder"),
    (["data.path=[a"], "data.path=[a: cannot be read as KEY=VALUE"),
    (["--cfg", "job", "training.lr=3"], "training.lr=3: no such key"),
    (["--config-name", "nope"], "Cannot find primary config 'nope'"),
    (["--multirun", "beta=0.1,-1"], "method.beta=-1.0: must be above 0"),
    (["--multirun", "method=dpo,nope"], "method=nope: no such option."),
    (["--multirun", "method=dpo,sft", "beta=0.1"], "beta=0.1: method=sft has no beta"),
    (["model.shape.kv_heads=0"], "model.shape.kv_heads=0: "),
    (
        ["model=hub", "model.path=org/name", "model.shape.layers=4"],
        "model.shape.layers=4: model=hub has no shape to change",
    ),
    (["method=1"], "method=1: "),
    (["hydra.run.dir=/proc/nowhere"], ""),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"), CHEAP, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_a_mistake_imports_nothing_heavy_and_leaves_nothing(arguments, sentence, run_command, tmp_path):
    ended = run_command(*arguments)
    assert len(ended.errors) == 1, ended.errors[-1]
    assert ended.errors[0].startswith(f"error: {sentence}")
    assert (ended.code, ended.output) == (2, "")
    assert not {"torch", "transformers", "datasets", "trl"} & ended.imported
    assert list((tmp_path / "here").iterdir()) == []


def test_of_an_option_that_is_given_twice_the_last_counts_and_is_named(call_main):
    for words in (["method=dpo", "method=dpoo"], ["model=tiny", "method=sft", "beta=1", "method=dpoo"]):
        ended = call_main(*words)
        assert (ended.code, len(ended.errors)) == (2, 1)
        assert ended.errors[0].startswith("error: method=dpoo: no such option; did you mean dpo? There are: ")


def test_what_is_asked_of_the_command_itself(call_main):
    """Hydra would show its own version, and refuse a setting of the lab beside --hydra-help."""
    for more in ([], ["beta=0.1"]):
        assert call_main("--version", *more).output == f"alignment_lab {__version__}\n"
        shown = call_main("--hydra-help", *more)
        assert (shown.code, shown.errors) == (0, []) and "--hydra-help : Hydra's help" in shown.output


def test_a_traceback_is_there_for_whoever_asks(run_command, tmp_path):
    ended = run_command("beta=-1", HYDRA_FULL_ERROR="1")
    assert ended.code == 1
    assert "Traceback (most recent call last):" in ended.errors
    assert "SpecError: method.beta=-1.0" in ended.errors[-1]
    assert list((tmp_path / "here").iterdir()) == []


def test_columns_are_judged_without_torch(run_command, write_rows, tmp_path):
    ended = run_command("data=local", f"data.path={write_rows([{'text': 'one'}])}")
    assert ended.code == 2
    assert "has the columns text; this method needs `chosen` and `rejected`" in ended.errors[-1]
    assert not {"torch", "transformers", "trl"} & ended.imported
    assert list((tmp_path / "here").iterdir()) == []


def test_the_settings_are_shown_within_a_second(run_command, composed, tmp_path):
    ended = run_command("--cfg", "job", "recipe=demo", "beta=0.2")
    assert (ended.code, ended.errors) == (0, [])
    shown = yaml.safe_load(ended.output)
    assert (shown["training"]["max_steps"], shown["beta"], shown["method"]["name"]) == (12, 0.2, "dpo")
    assert shown.keys() == to_plain(composed([])).keys()
    assert not {"torch", "transformers", "datasets", "trl"} & ended.imported
    assert list((tmp_path / "here").iterdir()) == []


def test_a_written_spec_is_found_by_the_command(run_command, composed, tmp_path):
    from alignment_lab.config import to_yaml

    first = composed(["method=sft", "training.seed=7"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.yaml").write_text(to_yaml(first))
    ended = run_command("--config-path", str(tmp_path / "run"), "--config-name", "spec", "--cfg", "job")
    assert (ended.code, ended.errors) == (0, [])
    assert yaml.safe_load(ended.output) == to_plain(first)


# ---- sweeps

FOLDERS = [
    "",
    "method=dpo",
    "beta=0.1,method=dpo",
    "beta=0.1,method=ipo",
    "data.path=x",
    "data.path=../x",
    "data.path=.._x",
    "data.path=/x",
    "data.path=C:\\x",
    "name=a b",
    "name=a_b",
    "name=a  b",
    "name=" + "n" * 300,
    "name=" + "n" * 299 + "m",
    "name=" + "n" * 114,
    "name=" + "n" * 115,
    "name=" + "n" * 116,
    "name=a\nb",
    "tracking.tags=[a,b]",
    "~training.seed",
    "name='*?<>|\"'",
]


@pytest.mark.parametrize("overrides", FOLDERS)
def test_a_folders_name_is_safe_and_bounded(overrides):
    name = folder_name(overrides)
    assert re.fullmatch(r"[\w.,=+-]+", name)
    assert name not in (".", "..")
    assert len(name) <= 127  # 120, a dash, six digits


def test_distinct_overrides_have_distinct_folders():
    assert len({folder_name(overrides) for overrides in FOLDERS}) == len(FOLDERS)


def test_plain_overrides_are_their_folders_name():
    assert folder_name("beta=0.1,method=dpo") == "beta=0.1,method=dpo"


def test_no_overrides_have_a_name_too():
    """It is what a sweep of one cell is called."""
    assert folder_name("") == "defaults"


def test_a_folders_name_fits_a_file_system_in_any_script(tmp_path):
    """120 characters of three bytes would be 360 bytes; most file systems take 255."""
    folder = tmp_path / folder_name("name=" + "模" * 200)
    folder.mkdir()
    assert len(folder.name.encode()) <= 255


GRIDS = [
    ([], [[]]),
    (["a=1"], [["a=1"]]),
    (["a=1,2", "b=3"], [["a=1", "b=3"], ["a=2", "b=3"]]),
    (["a=1,2", "b=x,y"], [["a=1", "b=x"], ["a=1", "b=y"], ["a=2", "b=x"], ["a=2", "b=y"]]),
    (["a=range(1,4)"], [["a=1"], ["a=2"], ["a=3"]]),
    (["a=choice(x,y)"], [["a=x"], ["a=y"]]),
    (["a=[1,2]"], [["a=[1,2]"]]),
    (["+a=1,2"], [["+a=1"], ["+a=2"]]),
]


@pytest.mark.parametrize(("overrides", "expected"), GRIDS)
def test_the_cells_of_a_grid(overrides, expected):
    assert grid_cells(overrides) == expected


def test_what_every_cell_shares_names_none_of_them():
    assert constant_keys(grid_cells(["a=1,2", "b=3", "+c=4", "d=5,5"])) == ["b", "c", "d"]
    assert constant_keys(grid_cells(["a=1"])) == ["a"]


def test_a_sweep_over_all_options_is_checked_too(run_command):
    """`glob` needs the list of options. Three of them have no beta, and all three are listed."""
    first, *errors = run_command("--multirun", "method=glob(*)", "beta=0.1").errors
    assert first == "error: 3 things are wrong, and nothing was started:"
    assert errors == [
        f"  beta=0.1: method={name} has no beta; leave it out, or use one of: {WITH_BETA}."
        for name in ("cpt", "reward", "sft")
    ]


@pytest.mark.parametrize(("error", "lines"), [(UserError("why"), 0), (ValueError("a bug"), 1)])
def test_a_cell_that_ends_with_a_sentence_says_nothing_else(error, lines, capsys):
    """Hydra writes all overrides before the error of a cell: of use for a bug alone."""
    returned = JobReturn(overrides=["a=1"], status=JobStatus.FAILED, _return_value=error)
    Preflight().on_job_end(OmegaConf.create(), returned)
    with pytest.raises(type(error), match=str(error)):
        returned.return_value  # noqa: B018
    assert capsys.readouterr().err.count("\n") == lines
