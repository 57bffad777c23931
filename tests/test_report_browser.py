"""The comparison's page in headless Chromium: opened, sorted, filtered, pointed at, samples compared.

From a file, without a network.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import METRICS, estimate, logged, make_run, spec

pytest.importorskip("websocket", reason="the extra `dev` is not installed")
from browser import CHROMIUM, Page, browser

from alignment_lab.report.__main__ import main
from alignment_lab.report.render.preview import (
    Histogram,
    Kind,
    LeftOut,
    Part,
    Preview,
    Run,
    ShownRow,
    Table,
    Token,
    write_preview_page,
)
from alignment_lab.report.study import drift

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: tests/chromium.sh"),
]
VALUES = {
    ("dpo", 0.1): (0.5, 0.6, 0.7),
    ("dpo", 0.01): (0.4, 0.49, 0.58),
    ("ipo", 0.1): (0.55, 0.5, 0.6),
    ("ipo", 0.01): (0.2, 0.35, 0.3),
}
PROMPTS = ["What is <b>two</b> & two?", "Where is Canberra?", "Who?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two betas, three seeds, and a run that failed; its answers hold what would be markup."""
    folder = tmp_path_factory.mktemp("sweep")
    for (method, beta), values in VALUES.items():
        for seed, value in enumerate(values, 1):
            make(folder / f"{method}-{beta}-{seed}", method, beta, seed, value)
    make_run(folder / "failed", spec("dpo", 0.5, seed=1), state="failed")
    assert main([str(folder)]) == 0
    return folder


def make(path: Path, method: str, beta: float, seed: int, value: float) -> None:
    gains = {"before": estimate(0), "after": estimate(-10 * value)}
    metrics: dict[str, Any] = {
        "answers/correct": {"before": estimate(0.1), "after": estimate(value)},
        "eval_loss": METRICS["eval_loss"],
    }
    run = make_run(
        path,
        spec(method, beta, seed=seed),
        metrics=metrics | {drift.CHOSEN: gains, drift.REJECTED: gains},
    )
    answers = {
        prompt: "all alike" if prompt == "Who?" else f"<i>{method}</i> {beta} {seed}" for prompt in PROMPTS
    }
    marks = {"expected": "Yes.", "before": "same", "before_correct": False, "after_correct": seed != 2}
    run.write_samples({"prompt": prompt, "after": answer, **marks} for prompt, answer in answers.items())
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in logged(30)))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tab: Page, folder: Path) -> Page:
    tab.errors.clear()
    tab.requests.clear()
    tab.open(folder / "report.html")
    tab.until("'ready' in document.documentElement.dataset")
    return tab


def names(page: Page) -> list[str]:
    return page.texts("#table tbody th label")


def column(page: Page, name: str) -> list[str]:
    at = page.js(
        "[...document.querySelectorAll('#table thead th')]"
        f".findIndex((heading) => heading.dataset.column === {json.dumps(name)}) + 1"
    )
    return page.texts(f"#table tbody tr > :nth-child({at}) .value")


def test_it_opens_without_a_fault_and_asks_for_nothing_else(page: Page, folder: Path) -> None:
    assert page.errors == [] and page.requests == [(folder / "report.html").resolve().as_uri()]
    assert page.js("document.body.scrollWidth <= innerWidth"), "a laptop's width is enough"
    assert "OutOfMemoryError" in page.texts(".left-out")[0]
    assert page.texts("#count") == ["5 of 5 shown"] and len(names(page)) == 5
    assert page.js("document.querySelectorAll('#marks circle').length") >= 4 * 4, (
        "before, mean and three seeds each"
    )


def test_any_column_sorts_both_ways_and_what_is_missing_stands_last(page: Page) -> None:
    values = [0.6, 0.55, 0.49, 0.283]
    button = "th[data-column='metric:answers/correct'] button"
    page.click(button)
    assert [float(text) for text in column(page, "metric:answers/correct")[:4]] == pytest.approx(
        values, abs=0.005
    )
    assert (
        page.js("document.querySelector('th[data-column=\"metric:answers/correct\"]').ariaSort")
        == "descending"
    )
    page.press("Enter")
    assert page.js("document.activeElement.closest('th')?.dataset.column") == "metric:answers/correct", (
        "the keyboard stays where it was"
    )
    assert [float(text) for text in column(page, "metric:answers/correct")[:4]] == pytest.approx(
        values[::-1], abs=0.005
    )
    assert column(page, "metric:answers/correct")[4] == "–"
    page.click("th[data-column='key:1'] button")
    assert column(page, "key:1") == ["0.01", "0.01", "0.1", "0.1", "0.5"], "numbers as numbers"


def test_filters_hold_everywhere(page: Page) -> None:
    page.press("/")
    page.type("ipo")
    assert names(page) == ["ipo, beta=0.01", "ipo, beta=0.1"] and page.texts("#count") == ["2 of 5 shown"]
    assert page.js("document.querySelectorAll('#marks .name').length") == 4, "two names, two verdicts"
    page.choose("#keys select[data-key='beta']", "0.1")
    assert names(page) == ["ipo, beta=0.1"]
    page.press("Escape")
    assert (
        page.texts("#count") == ["5 of 5 shown"] and page.js("document.querySelector('#filter').value") == ""
    )


def test_a_run_that_is_hidden_is_gone_from_every_chart(page: Page) -> None:
    page.js("document.querySelector('#curves').scrollIntoView()")
    page.until("document.querySelectorAll('#curves path').length > 0")
    lines = page.js("document.querySelector('#curves figure').querySelectorAll('path').length")
    assert lines == 13, "a line for each seed, and the steps of the one that failed"
    page.click("[data-chip='1']")
    page.until("document.querySelector('#curves figure').querySelectorAll('path').length === 10")
    assert page.js("document.querySelector('[data-chip=\"1\"]').ariaPressed") == "false"
    assert page.js("document.activeElement.dataset.chip") == "1"
    assert page.js("document.querySelector('#table input').checked") is True
    page.click("#reset")
    assert page.texts("#count") == ["5 of 5 shown"]


def test_columns_are_chosen_and_the_metric_is_judged_anew(page: Page) -> None:
    page.click("#columns-menu summary")
    page.click("#columns input[value='eval_loss']")
    assert page.js("document.querySelector('th[data-column=\"metric:eval_loss\"]') === null")
    page.choose("#metric", "eval_loss")
    assert (
        "own scale" in " ".join(column(page, "verdict")) and "held out: loss" in page.texts("#marks-title")[0]
    )
    page.choose("#rows", "runs")
    assert len(names(page)) == 13 and column(page, "state").count("") == 0


def test_the_metric_is_drawn_against_every_setting(page: Page) -> None:
    page.js("document.querySelector('#settings').scrollIntoView()")
    assert page.texts("#settings figcaption") == [
        "answers/correct against method",
        "answers/correct against beta",
    ]
    assert "beta (log)" in page.texts("#settings .title")


def test_answers_to_one_prompt_stand_side_by_side(page: Page) -> None:
    page.js("document.querySelector('#samples').scrollIntoView()")
    page.until("document.querySelector('#samples .answer') !== null")
    assert page.texts("#samples .prompt") == [PROMPTS[0]], "text, and no markup"
    assert (
        page.texts("#samples .answer")[:2] == ["same", "<i>dpo</i> 0.01 1"]
        and len(page.texts("#samples .after")) == 4
    )
    page.press("j")
    assert page.texts("#samples .prompt") == [PROMPTS[1]]
    page.press("k")
    page.press("k")
    assert page.texts("#samples .prompt") == [PROMPTS[2]], "before the first comes the last"
    page.click("#samples label:nth-of-type(2) input")
    assert page.js("document.querySelectorAll('#prompt option').length") == 2, "all answered `Who?` alike"
    page.click("#samples label:nth-of-type(1) input")
    assert len(page.texts("#samples .after")) == 12


def test_what_a_pointer_is_over_is_said(page: Page) -> None:
    page.js("document.querySelector('#marks').scrollIntoView({block: 'center'})")
    spot = page.js(
        "(({x, y, width}) => ({x: x + width / 2, y: y + 4}))"
        "(document.querySelector('#marks circle[r=\"5\"]').getBoundingClientRect())"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", **spot)
    page.settled()
    assert (
        page.js("!document.querySelector('#tip').hidden")
        and "dpo, beta=0.1" in page.texts("#tip")[0]
        and "3 seeds" in page.texts("#tip")[0]
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(page: Page, folder: Path, scheme: str) -> None:
    """The contrast of text and of its softer kind with the paper is 4.5 at least, as WCAG AA asks."""
    page.open(folder / "report.html", scheme=scheme)
    luminance = """(() => {
      const part = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
      const parts = (color) => color.match(/\\d+/g).slice(0, 3).map((value) => part(Number(value)));
      const weighted = ([red, green, blue]) => 0.2126 * red + 0.7152 * green + 0.0722 * blue;
      const of = (color) => weighted(parts(color));
      const paper = of(getComputedStyle(document.body).backgroundColor);
      const elements = ["h1", ".lead", "#count", ".note"].map((selector) => document.querySelector(selector));
      return elements.map((element) => of(getComputedStyle(element).color))
        .map((ink) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
    })()"""
    assert min(page.js(luminance)) >= 4.5


def test_a_hundred_runs_open_and_answer_at_once(page: Page, tmp_path: Path) -> None:
    """Twenty configurations of five seeds; limits are ten times what was measured on two busy cores."""
    for place in range(100):
        make(tmp_path / str(place), "dpo", 0.1 + place // 5, place % 5, 0.5 + place / 250)
    assert main([str(tmp_path)]) == 0
    page.open(tmp_path / "report.html")
    page.until("'ready' in document.documentElement.dataset")
    assert page.js("performance.getEntriesByType('navigation')[0].domComplete") < 4000
    start = time.monotonic()
    page.click("th[data-column='time'] button")
    assert time.monotonic() - start < 2
    assert page.errors == [] and page.texts("#count") == ["20 of 20 shown"]


# ---- the page of `action=preview`


@pytest.fixture(scope="module")
def preview_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair that was cut, with what would be markup in every place that shows text."""
    markup = "<script>document.title = 'x'</script><img src=http://127.0.0.1:9/x>"

    def part(title: str, kind: Kind) -> Part:
        tokens = (Token("<|im_start|>", (1,), special=True), Token(markup, (7, 8)), Token(" שלום 👩‍👧", (9,)))
        return Part(title, (Run(kind, tokens), Run(Kind.cut, (Token("behind", (4,)),), 90_000)))

    row = ShownRow(
        markup, (part("prompt", Kind.seen),), (part("chosen", Kind.trained), part("rejected", Kind.trained))
    )
    preview = Preview(
        markup,
        {"data": markup},
        dict.fromkeys(Kind, markup),
        [row] * 3,
        markup,
        notes=[markup],
        tables=[Table(markup, ("source", "rows"), [(markup, "3")])],
        histograms=[Histogram(markup, [5, 60, 700], limit=512), Histogram("answers", [])],
        left_out=[LeftOut(markup, 2, (markup,))],
        template={markup: (Token(markup, (5,)),)},
    )
    return write_preview_page(preview, tmp_path_factory.mktemp("preview") / "preview.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_preview_shows_tokens_and_asks_for_nothing(tab: Page, preview_page: Path, scheme: str) -> None:
    """Rows are text; ids come on demand; tokens can be read on their shades (4.5, as WCAG AA asks)."""
    tab.errors.clear()
    tab.requests.clear()
    tab.open(preview_page, scheme=scheme)
    assert tab.errors == [] and tab.requests == [preview_page.resolve().as_uri()]
    assert tab.js("document.querySelectorAll('script, img').length") == 0 and tab.js("document.title") != "x"
    assert tab.js("document.body.scrollWidth <= innerWidth")
    assert tab.js("document.querySelectorAll('.histogram rect.over').length") == 1
    boxes = tab.js(
        "[...document.querySelectorAll('.beside .part')].slice(0, 2).map((part) => part.offsetTop)"
    )
    assert boxes[0] == boxes[1], "answers stand side by side"
    content = "getComputedStyle(document.querySelector('.row .t:nth-of-type(2)'), '::before').content"
    assert tab.js(content) == "none"
    tab.click("#ids")
    assert tab.js(content) == '"7 8"'
    tab.click("#ids")
    contrasts = tab.js("""(() => {
      const part = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
      const of = (color) => ((parts) => 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2])(
        color.match(/\\d+/g).slice(0, 3).map((value) => part(Number(value))));
      return [...document.querySelectorAll('.row .t')].map((token) => getComputedStyle(token))
        .map((style) => [of(style.color), of(style.backgroundColor)])
        .map(([one, other]) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05));
    })()""")
    assert len(contrasts) > 20 and min(contrasts) >= 4.5
