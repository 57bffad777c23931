"""A mixture: how its sources are written and refused, which of their rows are taken, what is told."""

from __future__ import annotations

import pytest

from alignment_lab.config import DataSource
from alignment_lab.config.compose import load_experiment

UF = "+data/source@data.sources.uf=ultrafeedback_binarized"
HH = "+data/source@data.sources.hh=hh_rlhf"
LAB = "+data/source@data.sources.lab=embedded"
BOTH = f"data=mixture {UF} {HH}"

# ---- how sources are written


def test_sources_are_added_changed_and_removed_on_the_command_line(composed):
    mixed = composed([*BOTH.split(), "data.sources.uf.weight=0.3", "data.sources.hh.weight=0.7"]).data
    assert {name: source.weight for name, source in mixed.mixture().items()} == {"hh": 0.7, "uf": 0.3}
    assert mixed.sources["uf"].train == "train_prefs" and mixed.sources["uf"].eval == "test_prefs"
    assert mixed.is_on_hub() and mixed.names_heldout()
    for removed in ("~data.sources.hh", "~data/source@data.sources.hh"):
        assert list(composed([*BOTH.split(), removed]).data.mixture()) == ["uf"]


def test_the_order_of_sources_makes_no_other_experiment(composed):
    one, other = composed(["data=mixture", UF, HH]), composed(["data=mixture", HH, UF])
    assert one.run_id == other.run_id
    assert list(one.data.mixture()) == list(other.data.mixture())


@pytest.mark.parametrize("change", ["uf.weight=2", "uf.repeat=2", "uf.train=train_sft", "uf.revision=v1"])
def test_a_setting_of_a_source_makes_another_experiment(change, composed):
    weights = [*BOTH.split(), "data.sources.uf.weight=1", "data.sources.hh.weight=1"]
    assert composed(weights).run_id != composed([*weights, f"data.sources.{change}"]).run_id


def test_a_users_own_files_hold_sources_and_mixtures(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for name, text in {
        "data/source/mine": "defaults: [local, _self_]\n"
        f"path: {tmp_path}/rows.jsonl\ncolumns: {{prompt: ask.text}}\n",
        "data/blend": "defaults:\n- mixture\n- source@sources.uf: ultrafeedback_binarized\n- _self_\n"
        "name: blend\n"
        "sources:\n  uf: {fraction: 0.5}\n"
        f"  rest: {{kind: local, path: {tmp_path}/rows.jsonl, count: 7}}\n",
        "recipe/both": "# @package _global_\ndefaults:\n- /data/source@data.sources.mine: mine\n"
        "- override /data: blend\ndata: {sources: {mine: {repeat: 3}}}\n",
    }.items():
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    sources = load_experiment(["recipe=both"], config_dir=tmp_path).data.mixture()
    assert list(sources) == ["mine", "rest", "uf"]
    assert (sources["mine"].kind, sources["mine"].repeat) == (DataSource.local, 3)
    assert sources["mine"].columns == {"prompt": "ask.text"}
    assert (sources["rest"].count, sources["uf"].fraction) == (7, 0.5)


def test_one_file_is_a_mixture_of_one_and_keeps_its_keys(composed, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    data = composed(["data=local", f"data.path={tmp_path}/rows.jsonl", "data.eval_split=test"]).data
    ((name, source),) = data.mixture().items()
    assert (source.train, source.eval, source.path) == ("train", "test", f"{tmp_path}/rows.jsonl")
    assert [data.key(name, key) for key in ("train", "eval", "path", "kind")] == [
        "data.split", "data.eval_split", "data.path", "data.source",
    ]  # fmt: skip
    assert composed(BOTH.split()).data.key("uf", "train") == "data.sources.uf.train"


REFUSED = [  # overrides, how the sentence begins, the remedy in it
    ("data=mixture", "data.path=null: ", "+data/source@data.sources.uf=ultrafeedback_binarized"),
    (f"{BOTH} data.sources.uf.wieght=1", "data.sources.uf.wieght=1: ", "did you mean weight?"),
    (f"{BOTH} data.sources.uff.weight=1", "data.sources.uff.weight=1: ", "did you mean uf?"),
    (f"{BOTH} data.sources.zzz.weight=1", "data.sources.zzz.weight=1: ", "+data/source@data.sources.zzz="),
    (f"{BOTH} ~data.sources.zzz", "~data.sources.zzz: ", "has no source zzz"),
    (f"{BOTH} ~data/source@data.sources.zzz", "~data/source@data.sources.zzz: ", "no source zzz"),
    (f"{BOTH} data.sources.uf.weight=much", "data.sources.uf.weight=much: ", "give a number"),
    ("data=mixture data.sources.uf=hh_rlhf", "data.sources.uf=hh_rlhf: ", "+data/source@data.sources.uf="),
    ("data=mixture +data.sources.a.path=x", "+data.sources.a.path=x: ", "+data/source@data.sources.a="),
    ("data=mixture data.sources=3", "data.sources=3: ", "+data/source@data.sources.uf="),
    ("data=mixture +data/source@data.sources.a=hh_rlfh", "+data/source@data.sources.a=hh_rlfh: ", "hh_rlhf?"),
    ("data=mixture +data/source=hh_rlhf", "+data/source=hh_rlhf: ", "data.sources.NAME=hh_rlhf"),
    ("data=mixture +data/source@data.hh=hh_rlhf", "+data/source@data.hh=hh_rlhf: ", "data.sources.NAME"),
    ("data=mixture data/source@data.sources.a=hh_rlhf", "data/source@data.sources.a=hh_rlhf: ", "write a +"),
    ("data=source/hh_rlhf", "data=source/hh_rlhf: ", "+data/source@data.sources.hh_rlhf=hh_rlhf"),
    (f"{UF}", "data.sources=uf: data=embedded has rows of its own", "data=mixture"),
    (f"{BOTH} data.path=org/name", "data.path=org/name: ", "leave it out"),
    (f"{BOTH} data.eval_split=test", "data.eval_split=test: ", "leave it out"),
    (
        f"{BOTH} data.sources.uf.weight=1 data.sources.uf.count=3",
        "data.sources.uf: has weight=1.0 and count=3",
        "keep one",
    ),
    (f"{BOTH} data.sources.uf.weight=1", "data.sources.uf.weight: ", "hh has none; give every"),
    (f"{BOTH} data.rows=9", "data.rows=9: ", "give each source a weight"),
    (f"{BOTH} data.streaming=true training.max_steps=1", "data.streaming=true: ", "all rows"),
    (
        f"{BOTH} data.sources.uf.train=null data.sources.uf.eval=null",
        "data.sources.uf.train=null: ",
        "~data.sources.uf",
    ),
    (f"data=mixture {UF} data.sources.uf.train=null", "data.sources.uf.train=null: ", "a split to train on"),
    (f"{BOTH} data.sources.uf.train=null data.sources.uf.count=3", "data.sources.uf.count=3: ", "all taken"),
    (f"{BOTH} data.sources.uf.eval=train_prefs", "data.sources.uf.eval=train_prefs: ", "hold out another"),
    (f"{BOTH} data.sources.uf.path=rows.jsonl", "data.sources.uf.path=rows.jsonl: ", "kind=local"),
    (f"{BOTH} data.sources.uf.path=null", "data.sources.uf.path=null: ", "name its rows"),
    (f"{BOTH} data.sources.uf.kind=local", "data.sources.uf.path=Hugging", "looked from"),
    (f"{BOTH} data.sources.uf.eval_path=x.jsonl", "data.sources.uf.eval_path=x.jsonl: ", "kind=local"),
    (f"data=mixture {LAB} data.sources.lab.revision=v1", "data.sources.lab.revision=v1: ", "leave it out"),
    (f"{BOTH} +data.sources.uf.columns.promt=x", "data.sources.uf.columns.promt=x: ", "did you mean prompt?"),
    (f"{BOTH} +data.sources.uf.filter.n=[]", "data.sources.uf.filter.n=[]: ", "name some"),
    (f"{BOTH} +data.sources.uf.filter.n={{mn:3}}", "data.sources.uf.filter.n.mn=3: ", "did you mean min?"),
    (f"{BOTH} +data.sources.uf.filter.n={{min:x}}", "data.sources.uf.filter.n.min=x: ", "a finite number"),
    (f"{BOTH} +data.sources.uf.filter.n={{min:3,max:1}}", "data.sources.uf.filter.n.min=3: ", "exchange"),
    (f"{BOTH} +data.sources.uf.swap.n={{not:[[1]]}}", "data.sources.uf.swap.n.not=[1]: ", "a list holds"),
    ("data=embedded data.revision=v1", "data.revision=v1: ", "use data=hub"),
    ("data=embedded data.rows=3", "data.rows=3: ", "name its sources"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "begins", "remedy"), REFUSED)
def test_a_mistake_in_a_mixture_is_one_sentence(overrides, begins, remedy, error_message):
    sentence = error_message(overrides)
    assert sentence.startswith(begins) and remedy in sentence and sentence.endswith((".", "?"))
