"""The report: what differs, what may not be compared, what the terminal and the page say, and how mistakes
are met."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from alignment_lab.report.__main__ import main
from alignment_lab.report.render import curves, files, formatting, terminal
from alignment_lab.report.render.comparison_page import write_comparison_page
from alignment_lab.report.render.run_page import write_run_page
from alignment_lab.report.render.terminal_comparison import render_comparison
from alignment_lab.report.study import comparability
from alignment_lab.report.study.comparison import compare
from alignment_lab.report.study.headline import headline_metric
from alignment_lab.report.study.runs import find_runs, load_records
from alignment_lab.report.study.settings import varied_keys
from alignment_lab.runtime.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]


def estimate(value: float, half: float = 0.1, n: int = 64) -> dict[str, Any]:
    return {"value": value, "ci95": [value - half, value + half], "n": n}


def spec(method: str = "dpo", beta: float | None = 0.1, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "defaults": [f"/schema/method/{method}@method", {"hydra": "lab"}],
        "hydra": {"job": {"num": changes.get("seed", 1)}},
        "name": f"{method}-{changes}",
        "beta": None,
        "model": {"name": "tiny", "path": None},
        "data": {"name": "embedded", "max_length": 512},
        "method": {"name": method} | ({"beta": beta, "label_smoothing": 0.0} if beta else {}),
        "training": {"learning_rate": 1e-5, "global_batch": 8, "micro_tokens": None, "seed": 42},
        "tracking": {"name": "local", "group": str(changes)},
    }
    for key, value in changes.items():
        group = "data" if key in plain["data"] or key == "data" else "training"
        plain[group]["name" if key == "data" else key] = value
    return plain


def logged(steps: int = 4) -> list[dict[str, Any]]:
    train = [
        {
            "step": s,
            "loss": 0.7 - 0.1 * s,
            "learning_rate": 1e-5,
            "rewards/accuracies": 0.5,
            "rewards/chosen": 0.1,
        }
        for s in range(steps)
    ]
    return [
        *train,
        {"step": steps, "eval_loss": 0.3, "eval_implicit_rewards/accuracies": 0.8, "eval_runtime": 9.0},
    ]


SAMPLES = [
    {
        "prompt": [{"role": "user", "content": f"Question {number} & more?"}],
        "expected": "Canberra.",
        "before": "<script>alert(1)</script> [bold]x[/bold] \x1b[31mred",
        "after": "word " * 100,
        "before_correct": False,
        "after_correct": True,
    }
    for number in range(5)
]
METRICS = {
    "eval_loss": {"before": estimate(0.693, 0.01), "after": estimate(0.39, 0.06)},
    "eval_implicit_rewards/accuracies": {"before": estimate(0.5), "after": estimate(0.75)},
    "answers/correct": {"before": None, "after": estimate(0.61, 0.11)},
    "answers/empty": {"before": None, "after": {"value": None, "ci95": None, "n": None}},
}


def make_run(
    path: Path,
    plain: dict[str, Any] | None = None,
    state: str = "finished",
    content: str = "aa",
    **report: Any,
) -> RunDirectory:
    """A run directory as a run leaves it; what is not finished has a spec, a state and some steps."""
    run = RunDirectory(path)
    run.start_attempt(run_id="3fa09b12c7de", spec=yaml.safe_dump(plain or spec()))
    for row in logged():
        run.log_metrics(row)
    if state == "failed":
        run.fail("OutOfMemoryError: tried to allocate <2.31> GiB; set training.micro_tokens=512.")
    if state == "finished":
        run.write_samples(SAMPLES)
        (path / "provenance.json").write_text(
            json.dumps({"command": ["python", "train.py"], "content": {"data": content}})
        )
        whole = {
            "name": "dpo-tiny",
            "method": "dpo",
            "rows": {"train": 96, "eval": 64, "dropped": {"empty answer": 3}, "truncated": 2},
            "steps": 12,
            "tokens": 12345,
            "seconds": {"total": 412.3, "train": 290.0},
            "tokens_per_second": 425.3,
            "peak_memory_gb": 3.14,
            "metrics": METRICS,
        }
        (path / "report.json").write_text(json.dumps(whole | report))
        run.finish()
    return run


def rendered(call: Any, width: int = 80) -> str:
    """What `call(console)` prints where nobody watches."""
    console = Console(width=width, force_terminal=False, record=True, file=io.StringIO())
    call(console)
    return console.export_text()


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    make_run(tmp_path / "sweep" / "0", spec(beta=0.1))
    make_run(tmp_path / "sweep" / "1", spec(beta=0.01))
    make_run(tmp_path / "sweep" / "2", spec("sft", None))
    make_run(tmp_path / "sweep" / "3", spec("ipo", 0.1), state="failed")
    return tmp_path / "sweep"


# What differs


def test_only_settings_that_differ_are_named() -> None:
    assert varied_keys([spec(), spec()]) == []
    assert varied_keys([spec(), spec(learning_rate=2e-5)]) == ["training.learning_rate"]
    assert varied_keys([spec(beta=1), spec(beta=1.0)]) == []


def test_what_follows_from_a_choice_is_not_named_beside_it() -> None:
    """sft has no beta and no smoothing: the method says that already.

    Two betas of one method are two settings.
    """
    assert varied_keys([spec("sft", None), spec("dpo", 0.1)]) == ["method.name"]
    assert varied_keys([spec("sft", None), spec("dpo", 0.1), spec("dpo", 0.2)]) == [
        "method.name",
        "method.beta",
    ]


def test_a_setting_that_moves_with_the_method_is_news() -> None:
    """A learning rate of another group confounds the methods, so it is named."""
    assert varied_keys([spec("sft", None), spec("dpo", 0.1, learning_rate=1e-6)]) == [
        "method.name",
        "training.learning_rate",
    ]


def test_cells_are_labelled_and_sorted_by_value(tmp_path: Path) -> None:
    for folder, beta in zip("abc", (0.5, 0.01, 0.1), strict=True):
        make_run(tmp_path / folder, spec(beta=beta))
    records = load_records(find_runs(tmp_path))
    assert [record.label for record in records] == ["beta=0.01", "beta=0.1", "beta=0.5"]
    assert records[0].varied == {"method.beta": 0.01}


def test_equal_cells_are_told_apart_by_their_directory(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    assert [record.label for record in load_records(find_runs(tmp_path))] == ["a", "b"]


# What may not be compared


@pytest.mark.parametrize(
    ("second", "report", "content", "word"),
    [
        (spec(data="other"), {}, "aa", "data.name: embedded, other"),
        (spec(max_length=256), {}, "aa", "data.max_length: 256, 512"),
        (spec(seed=2), {}, "bb", "content.data"),
        (spec(seed=2), {"rows": {"train": 96, "eval": 32}}, "aa", "(32, 64)"),
    ],
)
def test_other_data_is_a_warning_everywhere(
    tmp_path: Path, second: dict[str, Any], report: dict[str, Any], content: str, word: str
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", second, content=content, **report)
    records = load_records(find_runs(tmp_path))
    assert len(comparability.warnings(records)) == 1 and word in comparability.warnings(records)[0]
    comparison = compare(records)
    assert word in " ".join(
        rendered(lambda console: terminal.show(render_comparison(comparison), console)).split()
    )
    html = write_comparison_page(tmp_path, comparison).read_text()
    assert word in html and html.index("Not comparable.") < html.index('id="table"')
    assert word in files.to_markdown(comparison, "x").partition("| configuration")[0]
    assert files.to_json(comparison)["warnings"] == comparability.warnings(records)


def test_equal_data_is_no_warning(sweep: Path) -> None:
    assert comparability.warnings(load_records(find_runs(sweep))) == []


def test_one_seed_and_unlike_losses_are_said(sweep: Path) -> None:
    notes = " ".join(comparability.notes(load_records(find_runs(sweep))))
    assert "one seed" in notes and "scale" in notes and "Not finished: 1 of 4" in notes


def test_losses_of_unlike_objectives_are_never_the_headline(tmp_path: Path) -> None:
    metrics: dict[str, Any] = {"metrics": {"eval_loss": METRICS["eval_loss"]}}
    make_run(tmp_path / "a", spec("dpo"), **metrics)
    make_run(tmp_path / "b", spec("ipo"), **metrics)
    make_run(tmp_path / "c", spec("dpo", seed=7), **metrics)
    by_name = {run.path.name: run for run in find_runs(tmp_path)}
    assert headline_metric(load_records([by_name["a"], by_name["b"]])) is None
    assert headline_metric(load_records([by_name["a"], by_name["c"]])) == "eval_loss"


# Numbers


def test_decimals_follow_the_interval() -> None:
    """Two digits of the half width: 0.11 gives two decimals, 0.01 three, 9 one."""
    assert formatting.format_measured(estimate(0.6104, 0.11)) == "0.61 [0.50, 0.72]"
    assert formatting.format_measured(estimate(0.6931, 0.01)) == "0.693 [0.683, 0.703]"
    assert formatting.format_measured(estimate(-140.22, 9)) == "-140.2 [-149.2, -131.2]"
    assert formatting.format_measured({"value": 0.5, "ci95": None, "n": 3}) == "0.500"
    assert formatting.format_measured({"value": 1.0, "ci95": [1.0, 1.0], "n": 3}) == "1.000 [1.000, 1.000]"
    assert formatting.format_measured(estimate(-4.8e-5, 2e-5)) == "-4.8e-05 [-6.8e-05, -2.8e-05]"
    assert formatting.format_measured(None) == formatting.ABSENT


def test_clipping_says_so_and_drops_control_codes() -> None:
    assert formatting.clip("a" * 400) == "a" * 299 + "…"
    assert formatting.clip("\x1b[31mred\x07\x9b") == "[31mred"
    assert (
        formatting.format_prompt([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
        == "system: s\nuser: u"
    )


def test_curves_leave_out_what_is_not_finite_and_say_so() -> None:
    metrics = [{"step": s, "loss": loss} for s, loss in enumerate((1.0, float("nan"), 0.5))]
    (drawn,) = curves.run_charts(metrics)
    assert drawn.series[0].points == [(0.0, 1.0), (2.0, 0.5)]
    assert drawn.remarks == ["training: 1 value was not finite."]


def test_thinning_keeps_the_mean() -> None:
    """Twelve points, at most four: bins of three. Equal bins keep the mean of all."""
    points = [(float(x), float(x)) for x in range(12)]
    assert curves.downsample(points, 4) == [(1.0, 1.0), (4.0, 4.0), (7.0, 7.0), (10.0, 10.0)]
    assert curves.downsample(points[:3], 4) == points[:3]


# The terminal


def test_a_run_is_shown_with_intervals_and_its_first_samples(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shown = rendered(lambda console: terminal.show_run(run, console))
    assert "0.75 [0.65, 0.85]" in shown and "0.61 [0.50, 0.72]" in shown
    assert "first 3 of 5" in shown and "Question 2" in shown and "Question 3" not in shown
    assert "[bold]x[/bold]" in shown, "a generation is never taken for markup"
    assert "\x1b" not in shown and "…" in shown
    assert f"python -m alignment_lab.report {run.path}" in shown
    write_run_page(run)
    assert f"Page: {run.page_file}" in rendered(lambda console: terminal.show_run(run, console))


def test_a_run_without_anything_is_shown(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.start_attempt(run_id="0" * 12, spec=yaml.safe_dump(spec()))
    assert "running" in rendered(lambda console: terminal.show_run(run, console))


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_column_is_mangled(sweep: Path, width: int) -> None:
    """Every value stands unbroken on one line, and no line is wider than the terminal."""
    records = load_records(find_runs(sweep))
    shown = rendered(
        lambda console: terminal.show(render_comparison(compare(records), console.width), console), width
    )
    assert all(len(line) <= width for line in shown.splitlines())
    for value in ("[0.50, 0.72]", "[0.65, 0.85]", "[0.330, 0.450]", "6.9 min", "425.3", "3.14", "failed"):
        assert value in shown
    assert "OutOfMemoryError" in shown and "…" not in shown


# The page


def loads(html: str) -> list[str]:
    """Everything that a browser would fetch for a page."""
    return [
        target
        for target in re.findall(r"(?:src|href|data|poster|action)\s*=\s*[\"']([^\"']*)", html)
        if not target.startswith("#")
    ] + re.findall(r"@import[^;]*|url\((?!#)[^)]*\)|<(?:script|link|iframe|object|embed)\b", html)


def test_the_page_of_a_run_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    html = write_run_page(make_run(tmp_path / "run")).read_text()
    assert loads(html) == []
    assert len(html) < 1_500_000
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html and "\x1b" not in html
    for part in (
        "dpo-tiny",
        "finished",
        "3fa09b12c7de",
        "61.0%",
        "[0.65, 0.85]",
        "425.3",
        "empty answer",
        "prefers-color-scheme",
    ):
        assert part in html
    for part in (
        "learning_rate: 1.0e-05",
        "train.py",
        "✓ right",
        "✗ wrong",
        "Canberra.",
        "Question 4 &amp; more?",
        "one seed",
    ):
        assert part in html
    assert "label_smoothing" in html and "/schema/method" not in html
    for title in ("Loss", "Preferred answer ranked higher", "Learning rate"):
        assert f"<figcaption>{title}</figcaption>" in html
    assert "runtime" not in re.findall(r"<figcaption>(.*?)</figcaption>", html)


def test_the_page_sets_shortcuts_beside_the_run_s_own_accuracy(tmp_path: Path) -> None:
    rule = {"name": "the longer one", "share": 0.625, "low": 0.5, "high": 0.75, "pairs": 64, "undecided": 3}
    page = write_run_page(make_run(tmp_path / "with", shortcuts=[rule])).read_text()
    _, section = page.split("<h2>Shortcuts</h2>")
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", section.split("</section>")[0])
    assert [re.sub("<.*?>", " ", row).split() for row in rows][-1] == (
        ["the", "longer", "one", "62.5%", "[50.0,", "75.0]", "64", "3"]
    )
    assert len(rows) == 2 and rows[0].startswith("preferred answer ranked higher")
    assert "Shortcuts" not in write_run_page(make_run(tmp_path / "without")).read_text()


def test_drawings_take_their_colors_from_the_page(tmp_path: Path) -> None:
    """One drawing serves light and dark.

    No color of its own is left in it, and no id that another chart has too.
    """
    html = write_run_page(make_run(tmp_path / "run")).read_text()
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.S))
    assert "var(--series-0)" in drawings and not re.search(r"#0102\d\d", drawings)
    assert not re.search(r'id="(figure|axes|text)_', drawings)


@pytest.mark.parametrize("state", ["running", "failed"])
def test_the_page_of_an_unfinished_run_says_so(tmp_path: Path, state: str) -> None:
    html = write_run_page(make_run(tmp_path / "run", state=state)).read_text()
    assert state in html and "Nothing was measured." in html
    assert ("OutOfMemoryError: tried to allocate &lt;2.31&gt;" in html) == (state == "failed")


def test_the_page_of_a_run_that_logged_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", metrics={})
    for file in (run.metrics_file, run.samples_file, run.provenance_file):
        file.unlink()
    html = write_run_page(run).read_text()
    assert "No step was logged." in html and "No samples were generated." in html


def page_data(html: str) -> dict[str, Any]:
    """The data of a comparison's page."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert match
    return json.loads(match.group(1))  # type: ignore[no-any-return]


def test_the_comparison_shows_every_cell(sweep: Path) -> None:
    """The failed run with its error and no number, the others with theirs, and the answers of each."""
    html = write_comparison_page(sweep, compare(load_records(find_runs(sweep)))).read_text()
    assert "OutOfMemoryError" in html and "ipo" in html and "Left out of every mean: 1 run" in html
    data = page_data(html)
    assert [each["label"] for each in data["configurations"]] == [
        "dpo, beta=0.01",
        "dpo, beta=0.1",
        "ipo, beta=0.1",
        "sft",
    ]
    assert [bool(each["metrics"]) for each in data["configurations"]] == [True, True, False, True]
    assert [len(prompt["answers"]) for prompt in data["prompts"]] == [3] * 5
    assert data["prompts"][0]["prompt"] == "Question 0 & more?" and data["headline"] == "answers/correct"


def test_the_comparison_loads_nothing(sweep: Path) -> None:
    """No address stands in the page but that of the SVG name space, and no element that fetches."""
    html = write_comparison_page(sweep, compare(load_records(find_runs(sweep)))).read_text()
    assert re.findall(r"https?://[^\"' ]+", html) == ["http://www.w3.org/2000/svg"]
    assert not re.search(
        r"@import|url\((?!#)|<(?:link|iframe|object|embed|img)\b|<script[^>]*src|\bfetch\(|XMLHttpRequest|import\(",
        html,
    )


def test_what_a_model_wrote_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    make_run(tmp_path / "a", spec(data="</script><script>alert(1)</script>"))
    make_run(tmp_path / "b")
    html = write_comparison_page(tmp_path, compare(load_records(find_runs(tmp_path)))).read_text()
    assert "<script>alert(1)" not in html and html.count("</script>") == 2
    assert (
        page_data(html)["prompts"][0]["answers"][0][1] == "<script>alert(1)</script> [bold]x[/bold] [31mred"
    )


# The door


def test_a_sweep_is_reported(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 0
    written = json.loads((sweep / "report.json").read_text())
    assert [cell["state"] for cell in written["cells"]] == ["finished", "finished", "failed", "finished"]
    assert written["cells"][0]["differs"] == {"method.name": "dpo", "method.beta": 0.01}
    assert written["cells"][0]["metrics"]["eval_loss"]["after"]["n"] == 64
    assert written["cells"][0]["cost"]["peak_memory_gb"] == 3.14
    out = capsys.readouterr().out
    assert str(sweep / "report.html") in out and "\x1b" not in out
    assert main([str(sweep)]) == 0, "the report of a sweep is no run"


def test_a_run_is_reported_and_its_own_report_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = run.report_file.read_bytes()
    assert main([str(run.path)]) == 0
    assert run.page_file.exists() and run.report_file.read_bytes() == before


def test_a_cell_that_never_began_and_one_that_cannot_be_read_are_shown(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "4").mkdir()
    (sweep / "4" / "spec.yaml").write_text(yaml.safe_dump(spec("kto")))
    (sweep / "0" / "report.json").write_text('{"metrics": ')
    assert main([str(sweep)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "queued" in out and "unreadable" in out and "cannot be read" in out
    html = (sweep / "report.html").read_text()
    assert "kto" in html and "cannot be read" in html and "has not started" in html


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    run = make_run(tmp_path / "run")
    for option in ("--out", "--metric", "--baseline"):
        assert main([str(run.path), option, "x"]) == 2
        assert f"{option}: {run.path} is one run" in capsys.readouterr().err
    for name, remedy in (
        ("missing", "no such directory; give"),
        ("empty", "holds no run"),
        ("file", "is a file; give"),
    ):
        assert main([str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert remedy in error and len(error.splitlines()) == 1 and name in error
    with pytest.raises(SystemExit) as exit:  # of argparse
        main([""])
    assert exit.value.code == 2 and "PATH: is empty, as a shell leaves it" in capsys.readouterr().err


def test_the_door_opens_without_torch(tmp_path: Path) -> None:
    """A mistake costs neither torch nor matplotlib; a whole report costs no torch."""
    run = make_run(tmp_path / "run")
    code = (
        "import sys; from alignment_lab.report.__main__ import main\n"
        "assert main(['/nowhere']) == 2; assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
        f"assert main([{str(run.path)!r}]) == 0; assert 'torch' not in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_attempts_are_shown_where_there_were_several(tmp_path: Path) -> None:
    """On the run's page and in the terminal; in a comparison as a column of the table and of the files."""
    sweep = tmp_path / "sweep"
    make_run(sweep / "0", spec(beta=0.1))
    run = make_run(sweep / "1", spec(beta=0.2))

    def table() -> str:
        compared = render_comparison(compare(load_records(find_runs(sweep))), 200)
        return rendered(lambda console: terminal.show(compared, console), 200)

    assert "attempts" not in table()
    attempts = [
        {"attempt": 1, "host": "node-7", "started": "2026-01-01", "ended": None, "from_step": 0, "step": 9},
        {"attempt": 2, "host": "node-8", "started": "2026-01-02", "ended": "x", "from_step": 6, "step": 12},
    ]
    make_run(sweep / "1", spec(beta=0.2), attempts=attempts, repeated_steps=3, device_hours=1.5)
    page = write_run_page(run).read_text()
    for text in ("node-7", "0 to 9", "killed", "node-8", "6 to 12", "3 more taken again, 2 attempts"):
        assert text in page
    assert "in 2 attempts" in rendered(lambda console: terminal.show_run(run, console))
    assert "attempts" in table()
    comparison = compare(load_records(find_runs(sweep)))
    costs = [cell["cost"] for cell in files.to_json(comparison)["cells"]]
    assert [(cost["attempts"], cost["device_hours"]) for cost in costs] == [(1, None), (2, 1.5)]
    assert ",attempts,seconds,steps,repeated_steps," in files.to_csv(comparison)
