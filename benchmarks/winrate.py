"""Win rates and length control on the published judgments of AlpacaEval 2.

    python -m benchmarks.winrate DATA [--alpaca-eval] [--coverage]

DATA is a folder with judgments.csv.gz (model, prompt, preference, model_chars, baseline_chars) and
published.csv. Prints what docs/STATISTICS.md states. With `--alpaca-eval` its own regression is run too,
where alpaca-eval and scikit-learn are installed, and its figures are written to winrate.json, which the tests
compare with.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from alignment_lab.evaluation.winrate import Preferences, length_controlled, win_rate

ORACLE = Path(__file__).with_name("winrate.json")


def read_judgments(folder: Path) -> dict[str, Preferences]:
    """The preferences for each model; comparisons without one are left out."""
    rows: dict[str, list[tuple[float, int, int, int]]] = defaultdict(list)
    with gzip.open(folder / "judgments.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if row["preference"]:
                lengths = int(row["model_chars"]), int(row["baseline_chars"])
                rows[row["model"]].append((float(row["preference"]), *lengths, int(row["prompt"])))
    return {model: Preferences(*map(list, zip(*pairs, strict=True))) for model, pairs in rows.items()}


def read_published(folder: Path) -> dict[str, dict[str, float]]:
    """The published figures of each model, in percent, by their columns."""
    with (folder / "published.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {row["model"]: {k: float(v) for k, v in row.items() if k != "model"} for row in rows}


def figures(folder: Path) -> dict[str, dict[str, float]]:
    """Ours beside the published ones, in percent, of each model but the baseline."""
    published, oracle = read_published(folder), json.loads(ORACLE.read_text())["length_controlled_minimal"]
    found = {}
    for model, preferences in read_judgments(folder).items():
        if model not in oracle:
            continue
        raw = win_rate(preferences, resamples=0)
        found[model] = {
            "win_rate": 100 * raw.value,
            "standard_error": 100 * raw.standard_error,
            "controlled": 100 * length_controlled(preferences, resamples=0).value,
            "penalized": 100 * length_controlled(preferences, cross_validated=True, resamples=0).value,
            "alpaca_eval": oracle[model],
            **published.get(model, {}),
        }
    return found


def rank_correlation(left: Any, right: Any) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(each)) for each in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


def run_alpaca_eval(folder: Path) -> dict[str, float]:
    """alpaca_eval's own `length_controlled_minimal`, in percent, of each model but the baseline.

    It downloads difficulties of prompts, which this regression does not use: it is given zeros.
    """
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        difficulties = Path(temporary) / "df_gamed.csv"
        zeros = {"model": "none", "index": range(805), "instruction_difficulty": 0.0}
        pd.DataFrame(zeros).to_csv(difficulties, index=False)
        glm_winrate.hf_hub_download = lambda **_: str(difficulties)
        for model, preferences in read_judgments(folder).items():
            if model == "gpt4_1106_preview":
                continue
            rows = pd.DataFrame(
                {
                    "preference": np.asarray(preferences.values) + 1,
                    "index": preferences.prompts,
                    "output_1": ["x" * length for length in preferences.baseline_lengths],
                    "output_2": ["x" * length for length in preferences.candidate_lengths],
                    "annotator": "judge",
                    "generator_1": "gpt4_1106_preview",
                    "generator_2": model,
                }
            )
            metrics = glm_winrate.get_length_controlled_winrate(
                rows,
                glm_name="length_controlled_minimal",
                save_weights_dir=None,
                is_warn_extreme_changes=False,
            )
            found[model] = round(float(metrics["length_controlled_winrate"]), 6)
    return found


def draw(generator: np.random.Generator, prompts: int, quality: float, slope: float) -> Preferences:
    """Preferences of 0 or 1, by the regression's own model.

    Lengths differ by a normal distribution whose mean is half its deviation.
    """
    difference = generator.normal(0.5, 1, prompts)
    won = generator.random(prompts) < 1 / (1 + np.exp(-quality - slope * np.tanh(difference)))
    lengths = np.rint(1000 + 200 * difference).astype(int).tolist()
    return Preferences(won.astype(float).tolist(), lengths, [1000] * prompts, range(prompts))


def shrunk(prompts: int, quality: float, studies: int = 60) -> int:
    """How often the cross-validated penalty leaves nothing of a quality."""
    generator = np.random.default_rng(0)
    draws = [draw(generator, prompts, quality, 0.0) for _ in range(studies)]
    rates = [length_controlled(pairs, cross_validated=True, resamples=0).value for pairs in draws]
    return sum(abs(rate - 0.5) < 1e-6 for rate in rates)


def coverage(prompts: int, quality: float, slope: float, studies: int = 300) -> tuple[float, float]:
    """How often, in percent, the intervals hold the true win rate and the true one at equal lengths."""
    generator = np.random.default_rng(0)
    shift = generator.normal(0.5, 1, 200_000)
    truth = float((1 / (1 + np.exp(-quality - slope * np.tanh(shift)))).mean()), 1 / (1 + np.exp(-quality))
    held = np.zeros(2)
    for _ in range(studies):
        pairs = draw(generator, prompts, quality, slope)
        for place, rate in enumerate((win_rate(pairs), length_controlled(pairs, resamples=200))):
            held[place] += bool(rate.ci95 and rate.ci95[0] <= truth[place] <= rate.ci95[1])
    return float(100 * held[0] / studies), float(100 * held[1] / studies)


def main() -> None:
    """Print the figures of the page."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--alpaca-eval", action="store_true", help="run its regression, and write winrate.json"
    )
    parser.add_argument("--coverage", action="store_true", help="how often the intervals hold (minutes)")
    arguments = parser.parse_args()
    if arguments.alpaca_eval:
        ORACLE.write_text(
            json.dumps({"length_controlled_minimal": run_alpaca_eval(arguments.data)}, indent=1) + "\n"
        )
    rows = [row for row in figures(arguments.data).values() if "published_win_rate" in row]

    def column(name: str) -> Any:
        return np.array([row[name] for row in rows])

    errors = np.abs(column("standard_error") - column("published_standard_error"))
    print(f"{len(rows)} models with published figures, in points (percent)")
    print(
        f"win rate: largest difference {np.abs(column('win_rate') - column('published_win_rate')).max():.6f}"
    )
    print(f"standard error: {(errors < 1e-6).sum()} equal, largest difference {errors.max():.3f}")
    for name in ("penalized", "controlled"):
        away = np.abs(column(name) - column("alpaca_eval"))
        print(f"{name} beside alpaca_eval's minimal: mean {away.mean():.3f}, largest {away.max():.3f}")
    for name in ("penalized", "controlled", "alpaca_eval", "win_rate"):
        away = np.abs(column(name) - column("published_lc_win_rate")).mean()
        ranks = rank_correlation(column(name), column("published_lc_win_rate"))
        print(f"{name} beside the published controlled: ranks {ranks:.3f}, mean {away:.2f}")
    if arguments.coverage:
        print(f"cross-validated, 64 prompts, quality 0.2: {shrunk(64, 0.2)} of 60 at 50 %")
    for prompts in (16, 64, 256) if arguments.coverage else ():
        for quality, slope in ((0.0, 0.0), (0.5, 1.0), (-2.0, 1.5)):
            raw, controlled = coverage(prompts, quality, slope)
            print(
                f"{prompts} prompts, quality {quality}, slope {slope}: {raw:.1f} {controlled:.1f}", flush=True
            )


if __name__ == "__main__":
    main()
