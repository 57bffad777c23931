"""A mixture: how its sources are written and refused, which of their rows are taken, what is told."""

from __future__ import annotations

import contextlib
import io
import json
import random
import subprocess
import sys
from collections import Counter
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml
from rich.console import Console

from alignment_lab.config import Data, DataSource, Source
from alignment_lab.config.compose import load_experiment
from alignment_lab.data import load_rows, preparation, workers
from alignment_lab.data.__main__ import main as build_mixture
from alignment_lab.data.mixture import (
    SourceCounts,
    choose_rows,
    describe_dropped,
    passes,
    rename,
    require_columns,
    row_counts,
    source_table,
)
from alignment_lab.data.reasons import DataError

ROOT = Path(__file__).resolve().parents[1]
UF = "+data/source@data.sources.uf=ultrafeedback_binarized"
HH = "+data/source@data.sources.hh=hh_rlhf"
LAB = "+data/source@data.sources.lab=embedded"
MINE = "+data/source@data.sources.m=local"
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


def test_a_setting_of_a_source_makes_another_experiment(composed):
    spec = composed(BOTH.split())
    ids = {spec.run_id}
    for setting, value in (("fraction", 0.5), ("repeat", 2), ("train", "train_sft"), ("revision", "v1")):
        setattr(spec.data.sources["uf"], setting, value)
        ids.add(spec.run_id)
    assert len(ids) == 5


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
    *(
        (f"{BOTH} data.sources.uf.{share}=0", f"data.sources.uf.{share}=0", "~data.sources.uf leaves")
        for share in ("weight", "fraction", "count", "repeat")
    ),
    (f"{BOTH} ~data.sources.uf data.sources.uf.weight=1", "data.sources.uf.weight=1: ", "the source uf out"),
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
    (
        f"data=mixture {MINE} data.sources.m.path=a.jsonl data.sources.m.eval=test "
        "data.sources.m.eval_path=b.jsonl",
        "data.sources.m.eval_path=b.jsonl: ",
        "data.sources.m.eval=test already",
    ),
    (
        "data=local data.path=a.jsonl data.eval_path=b.jsonl data.eval_split=test",
        "data.eval_split=test: ",
        "data.eval_path=b.jsonl already",
    ),
    ("data.eval_fraction=0", "data.eval_fraction=0.0: ", "at least one"),
    *(
        (f"{BOTH} {override}", f"{override}: ", f"write +{override}.")
        for override in (
            "data.sources.uf.filter={lang:en}",
            "data.sources.uf.filter.lang=en",
            "data.sources.uf.filter.score.min=3",
            "data.sources.uf.columns={prompt:ask}",
            "data.sources.uf.columns.prompt=ask",
        )
    ),
    (f"{BOTH} ~data.sources.uf.filter.lang", "~data.sources.uf.filter.lang: ", "leave it out"),
    (f"{BOTH} data.sources.uf.kind=local", "data.sources.uf.path=Hugging", "looked from"),
    (f"{BOTH} data.sources.uf.eval_path=x.jsonl", "data.sources.uf.eval_path=x.jsonl: ", "kind=local"),
    (f"data=mixture {LAB} data.sources.lab.revision=v1", "data.sources.lab.revision=v1: ", "leave it out"),
    (f"{BOTH} +data.sources.uf.columns.promt=x", "data.sources.uf.columns.promt=x: ", "did you mean prompt?"),
    (f"{BOTH} +data.sources.uf.filter.n=[]", "data.sources.uf.filter.n=[]: ", "name some"),
    (f"{BOTH} +data.sources.uf.filter.n={{mn:3}}", "data.sources.uf.filter.n.mn=3: ", "did you mean min?"),
    (f"{BOTH} +data.sources.uf.filter.n={{min:x}}", "data.sources.uf.filter.n.min=x: ", "a finite number"),
    (f"{BOTH} +data.sources.uf.filter.n={{min:3,max:1}}", "data.sources.uf.filter.n.min=3: ", "exchange"),
    (f"{BOTH} +data.sources.uf.filter.n={{not:[[1]]}}", "data.sources.uf.filter.n.not=[1]: ", "a list holds"),
    ("data=embedded data.revision=v1", "data.revision=v1: ", "use data=hub"),
    ("data=embedded data.rows=3", "data.rows=3: ", "name its sources"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "begins", "remedy"), REFUSED)
def test_a_mistake_in_a_mixture_is_one_sentence(overrides, begins, remedy, error_message):
    sentence = error_message(overrides)
    assert sentence.startswith(begins) and remedy in sentence and sentence.endswith((".", "?"))


# ---- which rows are taken

ROW = {"question": "Why?", "meta": {"score": 4, "lang": "en"}, "a.b": 1, "prompt": "kept", "done": True}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, ROW),
        ({"prompt": "question"}, {"prompt": "Why?", "meta": ROW["meta"], "a.b": 1, "done": True}),
        ({"prompt": None}, {key: value for key, value in ROW.items() if key != "prompt"}),
        ({"system": "meta.lang"}, {**ROW, "system": "en"}),
        ({"margin": "a.b"}, {**{key: value for key, value in ROW.items() if key != "a.b"}, "margin": 1}),
        ({"prompt": "question", "input": "prompt"}, {
            "prompt": "Why?", "input": "kept", "meta": ROW["meta"], "a.b": 1, "done": True,
        }),
        ({"prompt": "absent"}, {key: value for key, value in ROW.items() if key != "prompt"}),
    ],
)  # fmt: skip
def test_columns_are_read_under_the_labs_names(columns, expected):
    before = dict(ROW)
    assert rename(ROW, columns) == expected
    assert before == ROW


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        ({}, True),
        ({"question": "Why?"}, True),
        ({"question": "Who?"}, False),
        ({"meta.score": {"min": 4}}, True),
        ({"meta.score": {"min": 4.5}}, False),
        ({"meta.score": {"max": 4, "not": 3}}, True),
        ({"meta.score": {"not": [4, 5]}}, False),
        ({"meta.lang": ["de", "en"], "done": True}, True),
        ({"done": 1}, False),  # true is not 1
        ({"a.b": True}, False),
        ({"absent": None}, True),
        ({"absent": {"min": 0}}, False),
        ({"question": {"min": 0}}, False),
        ({"question": {"not": None}}, True),
    ],
)
def test_a_filter_takes_the_rows_of_which_all_conditions_hold(conditions, holds):
    assert passes(ROW, conditions) is holds


def mixture(**sources: dict[str, object]) -> Data:
    return Data(sources={name: Source(DataSource.embedded, **settings) for name, settings in sources.items()})


def test_a_column_that_no_row_has_is_named():
    data = mixture(one={"columns": {"prompt": "qestion"}}, two={"filter": {"score": 3, "meta.x": 1}})
    with pytest.raises(DataError, match=r"^data.sources.one.columns.prompt: .*qestion; there are: meta, q"):
        require_columns(data, "one", {"question", "meta"})
    with pytest.raises(DataError, match=r"^data.sources.two.filter.score: "):
        require_columns(data, "two", {"meta"})
    require_columns(data, "two", {"meta", "score"})


def test_what_a_filter_and_a_mapping_take_away_is_told(composed, tmp_path):
    """Also where no converter fits what is left of the columns, and where the filter leaves nothing."""
    file = tmp_path / "rows.jsonl"
    rows = [{"ask": f"Ask {n}", "reply": f"Reply {n}", "lang": "en" if n % 4 else "de"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = composed(["method=sft", "data=mixture", MINE, f"data.sources.m.path={file}", LAB])

    def load(prompt: str = "ask", **conditions: str) -> list[str]:
        source = spec.data.sources["m"]
        source.columns, source.filter = {"prompt": prompt, "completion": "reply"}, conditions
        return load_rows(spec).findings

    assert load() == []
    assert load(lang="en") == ["data.sources.m.filter: 10 of 40 rows do not pass it"]
    with pytest.raises(DataError, match=r"^data\.sources\.m\.filter: none of the 40 rows passes it; "):
        load(lang="fr")
    with pytest.raises(DataError, match=r"^data\.sources\.m\.filter\.tongue: .*: ask, lang, reply\.$"):
        load(tongue="en")
    with pytest.raises(DataError, match=r"\.columns\.prompt: .*column question; .*: ask, lang, reply\.$"):
        load("question")
    file.write_text("".join(json.dumps({**row, "prompt": [n]}) + "\n" for n, row in enumerate(rows)))
    with pytest.raises(
        DataError, match=r"\.columns\.prompt: .*column question; .*: ask, lang, prompt, reply\.$"
    ):
        load("question")  # and not that every row is bad


def keys_of(count: int, seed: int = 0) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 2**63, count, numpy.uint64)


def test_a_choice_is_the_same_wherever_the_rows_lie_and_part_of_a_larger_one():
    """By content: in any order of the rows, with or without other rows' company."""
    keys = keys_of(1000)
    small, large = (set(keys[choose_rows(keys, n, seed=3, name="uf")]) for n in (200, 600))
    assert len(small) == 200 and small < large
    shuffled = numpy.random.default_rng(1).permutation(keys)
    assert set(shuffled[choose_rows(shuffled, 200, seed=3, name="uf")]) == small
    for other in ({"seed": 4, "name": "uf"}, {"seed": 3, "name": "hh"}):
        overlap = len(small & set(keys[choose_rows(keys, 200, **other)]))
        assert 20 < overlap < 65  # two independent fifths share 40 of 1000, with a deviation of 5.1


def test_a_choice_is_the_same_in_every_process():
    code = (
        "import numpy; from alignment_lab.data.mixture import choose_rows\n"
        "keys = numpy.random.default_rng(0).integers(0, 2**63, 500, numpy.uint64)\n"
        "print(choose_rows(keys, 5, seed=0, name='uf').tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(choose_rows(keys_of(500), 5, seed=0, name="uf").tolist())


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 350])
def test_each_row_is_taken_as_often_as_the_others_or_once_more(count):
    chosen = choose_rows(keys_of(100), count, seed=0, name="a").tolist()
    times = Counter(chosen)
    assert len(chosen) == count
    assert {times[row] for row in range(100)} <= {count // 100, -(-count // 100)}


def test_adding_a_source_changes_no_other():
    """Of fractions and counts. Of weights the size changes, and a smaller choice is part of a larger."""
    shares = [{"fraction": 0.3}, {"count": 70}, {"repeat": 3}, {}, {"count": 5, "repeat": 2}]
    usable = {name: random.Random(name).randint(80, 300) for name in "abcdef"}
    sources = {name: random.Random(name).choice(shares) for name in usable}
    everything = row_counts(mixture(**sources), usable)
    for name, settings in sources.items():
        assert row_counts(mixture(**{name: settings}), usable) == {name: everything[name]}


def test_fractions_are_of_each_sources_own_rows():
    """The handbook's weights: they may sum to more than 1."""
    data = mixture(a={"fraction": 1.0}, b={"fraction": 0.5}, c={"fraction": 0.25}, d={"fraction": 0.001})
    assert row_counts(data, {"a": 100, "b": 100, "c": 10, "d": 100}) == {"a": 100, "b": 50, "c": 3, "d": 1}


@pytest.mark.parametrize(
    ("usable", "repeat", "expected"),
    [
        ({"a": 100, "b": 100}, 1, {"a": 100, "b": 33}),  # a is three quarters: it is used up first
        ({"a": 1000, "b": 10}, 1, {"a": 30, "b": 10}),
        ({"a": 1000, "b": 10}, 4, {"a": 120, "b": 40}),
    ],
)
def test_a_weight_is_a_share_of_the_largest_mixture_without_a_further_repeat(usable, repeat, expected):
    data = mixture(a={"weight": 3}, b={"weight": 1, "repeat": repeat}, held={"train": None})
    assert row_counts(data, {**usable, "held": 0}) == expected


def test_a_mixture_that_its_sources_are_too_small_for_is_refused():
    data = mixture(a={"weight": 1}, b={"weight": 1})
    data.rows = 20
    assert row_counts(data, {"a": 30, "b": 10}) == {"a": 10, "b": 10}
    with pytest.raises(DataError, match=r"^data.rows=20: b has 9 .* of 18; .*data.sources.b.repeat"):
        row_counts(data, {"a": 30, "b": 9})
    with pytest.raises(DataError, match=r"^data.sources.a.count=7: it has 6 rows"):
        row_counts(mixture(a={"count": 7}), {"a": 6})


def test_the_table_adds_up_and_leaves_out_what_is_nowhere():
    counts = [
        SourceCounts("uf", read=10, kept=8, chosen=6, dropped=Counter({"are empty": 2}), answers=6),
        SourceCounts("hh", read=1000, kept=1000, chosen=18, heldout=4, answers=40),
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(source_table(counts))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert " ".join(lines[0]) == "source read left out kept to train on held out answers share"
    assert lines[1:] == [
        ["uf", "10", "2", "8", "6", "0", "6", "25.0%"],
        ["hh", "1,000", "0", "1,000", "18", "4", "40", "75.0%"],
        ["total", "1,010", "2", "1,008", "24", "4", "46", "100.0%"],
    ]
    assert source_table(counts[:1]) is None
    assert describe_dropped(counts) == ["uf: 2 are empty"]
    assert counts[0].as_dict()["dropped"] == {"are empty": 2}
    assert counts[0].as_dict()["heldout"] == 0 and "tokens" not in counts[0].as_dict()  # nobody counted them


# ---- a mixture as one folder


def write_pairs(file: Path, count: int, word: str) -> Path:
    rows = [
        {"prompt": f"{word} {row}?", "chosen": f"{word} is {row}", "rejected": "no", "n": row}
        for row in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def build_arguments(folder: Path) -> list[str]:
    """Two local sources, one with held-out rows, one filtered and in shares."""
    sources = {
        "big": {"path": folder / "big.jsonl", "weight": 0.75, "+filter.n": "{min:5}"},
        "small": {"path": folder / "small.jsonl", "eval_path": folder / "held.jsonl", "weight": 0.25},
    }
    for name, count in (("big", 90), ("small", 20), ("held", 6)):
        write_pairs(folder / f"{name}.jsonl", count, name)
    return [
        "method=dpo",
        "data=mixture",
        *(f"+data/source@data.sources.{name}=local" for name in sources),
        *(
            f"{'+' * key.startswith('+')}data.sources.{name}.{key.lstrip('+')}={value}"
            for name, settings in sources.items()
            for key, value in settings.items()
        ),
    ]


def built(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "manifest.yaml").read_text())


@pytest.fixture
def few_are_many(monkeypatch):
    """Stretches of a few rows, so that several processes have some to convert."""
    for name, value in {"FEW_ROWS": 10, "STRETCH_ROWS": 7, "FEW_BYTES": 0}.items():
        monkeypatch.setattr(preparation, name, value)
    monkeypatch.setattr(workers, "_processes", None)


def test_the_same_mixture_has_the_same_digest_with_any_workers_in_any_process(
    tmp_path, few_are_many, monkeypatch, capsys
):
    """Also where the files lie elsewhere, and the sources are given in another order."""
    arguments = build_arguments(tmp_path)
    for workers_count in (1, 4):
        monkeypatch.setenv("ALIGNMENT_LAB_CACHE", str(tmp_path / f"cache{workers_count}"))
        out = tmp_path / f"out{workers_count}"
        with monkeypatch.context() as spied:
            started: list[int] = []
            start = futures.ProcessPoolExecutor.__init__

            def spy(pool: Any, count: int, *args: Any, start: Any = start, seen: Any = started, **rest: Any):
                seen.append(count)
                start(pool, count, *args, **rest)

            spied.setattr(futures.ProcessPoolExecutor, "__init__", spy)
            assert build_mixture(["build", *arguments, f"out={out}", f"workers={workers_count}"]) == 0
        assert set(started) == ({workers_count} if workers_count > 1 else set())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    turned = build_arguments(elsewhere)
    turned[2:4] = reversed(turned[2:4])
    command = [sys.executable, "-m", "alignment_lab.data", "build", *turned, f"out={tmp_path}/out"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert len({built(tmp_path / name)["digest"] for name in ("out1", "out4", "out")}) == 1
    manifest = built(tmp_path / "out")
    assert manifest["rows"] == {"train": 80, "test": 6}
    assert {name: counts["chosen"] for name, counts in manifest["counts"].items()} == {"big": 60, "small": 20}
    assert manifest["counts"]["big"]["filtered"] == 5
    printed = capsys.readouterr().out
    assert manifest["digest"] in printed and "data.sources.big.filter: 5 of 90 rows do not pass" in printed


def test_a_run_on_what_was_built_sees_the_rows_of_the_mixture_in_their_order(tmp_path, composed, capsys):
    arguments = build_arguments(tmp_path)
    assert build_mixture(["build", *arguments, f"out={tmp_path}/mix"]) == 0
    mixed = load_rows(composed(arguments))
    artefact = ["method=dpo", "data=local", f"data.path={tmp_path}/mix", "data.eval_split=test"]
    again = load_rows(composed(artefact))
    assert list(again.train) == list(mixed.train)
    assert list(again.heldout) == list(mixed.heldout)
    assert load_rows(composed([*arguments, "training.seed=7"])).train != mixed.train
    assert build_mixture(["build", *artefact[:-1], f"out={tmp_path}/again"]) == 0
    assert f"data.path={tmp_path}/mix: not read: test; hold one out" in capsys.readouterr().out
    assert build_mixture(["build", *arguments, f"out={tmp_path}/mix"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"data.path={tmp_path}/mix data.eval_split=test")


def test_nothing_is_written_over_what_is_something_else(tmp_path, capsys):
    arguments = build_arguments(tmp_path)
    out = tmp_path / "mix"

    def build_again(*more: str) -> str:
        with contextlib.suppress(SystemExit):
            assert build_mixture(["build", *arguments, f"out={out}", *more]) == 0
        return capsys.readouterr().err

    assert build_again() == build_again() == ""
    assert "holds another mixture" in build_again("data.mixture_seed=1")
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []
    shard = next(out.glob("train-*"))
    shard.write_text(shard.read_text() + "{}\n")
    assert "was changed since it was built" in build_again()
    (out / "manifest.yaml").unlink()
    assert "is no mixture that was built" in build_again()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["make"], "make: no such command"),
        (["build"], "out: say where"),
        (["build", "out=x", "workers=0"], "workers=0: give a whole number"),
        (["build", "out=x", "--force"], "--force: no such option"),
        (["build", "out=x", "data.pth=3"], "data.pth=3: no such key; did you mean data.path?"),
    ],
)
def test_a_mistake_in_a_build_is_one_sentence(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["data", *words])
    with pytest.raises(SystemExit) as exit:
        build_mixture(words)
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


def test_adding_a_source_holds_out_no_other_rows_of_the_others(tmp_path, composed):
    """Each source holds out a share of its own; what another source shares with it is left out there."""
    for name in ("one", "two"):
        write_pairs(tmp_path / f"{name}.jsonl", 60, name)
    alone = [
        "data=mixture", "+data/source@data.sources.one=local",
        f"data.sources.one.path={tmp_path}/one.jsonl", "data.sources.one.fraction=0.5",
    ]  # fmt: skip
    added = ["+data/source@data.sources.two=local", f"data.sources.two.path={tmp_path}/two.jsonl"]

    def rows_of_one(overrides: list[str], part: str) -> list[Any]:
        rows = getattr(load_rows(composed(overrides), shuffled=False), part)
        return sorted((row for row in rows if row["prompt"][0]["content"].startswith("one")), key=str)

    for part in ("train", "heldout"):
        assert rows_of_one(alone, part) == rows_of_one([*alone, *added], part) != []
