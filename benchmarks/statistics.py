"""How often the report's statements are wrong, on simulated data.  python -m benchmarks.statistics [--write]

Draws studies in which nothing differs on the population, and counts how often the lab's own functions call a
difference significant, and how often an interval holds the true value. `--write` puts the tables into
docs/STATISTICS.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignment_lab.evaluation.intervals import Scores
from alignment_lab.report.study import crossed, stats
from alignment_lab.runtime.cluster_means import influence, share_interval

Array = np.ndarray
PAGE = Path(__file__).parents[1] / "docs" / "STATISTICS.md"
SEEDS = (2, 3, 5, 10)
PROMPTS = (4, 8, 16, 64, 256)
SHARE = 0.7  # of right answers, in the population


@dataclass(frozen=True)
class World:
    """A population of prompts and seeds on which all configurations are equally good on average.

    Right or wrong answers (`concentration`) or real numbers (`parts`).
    """

    name: str
    concentration: float | None = (
        None  # of how often a prompt is answered right: 0 always or never, inf alike
    )
    parts: tuple[float, float, float] = (0, 0, 0)  # variance of a mean due to prompts, to seeds, to both
    seed_effect: float = 0.0  # in logits
    prompts: int = 64
    rows: int = 1  # of each prompt
    token_spread: float = 0.0  # of the logarithm of a row's number of tokens
    paired: bool = True
    configurations: int = 2

    def draw(self, generator: np.random.Generator, seeds: int) -> tuple[Array, Array]:
        """Sums of values [configurations, seeds, prompts], and weights [prompts]."""
        shape = (self.configurations, seeds, self.prompts)
        weights = np.full(self.prompts, float(self.rows))
        if self.concentration is None:
            over_prompts, over_seeds, both = np.sqrt(self.parts)
            values = (
                over_prompts * math.sqrt(self.prompts) * generator.normal(size=(shape[0], 1, shape[2]))
                + over_seeds * math.sqrt(seeds) * generator.normal(size=(*shape[:2], 1))
                + both * math.sqrt(self.prompts * seeds) * generator.normal(size=shape)
            )
            if self.token_spread:
                weights = np.ceil(generator.lognormal(4, self.token_spread, self.prompts))
            return values * weights, weights
        right = self._chances(generator, (shape[0], 1, shape[2]))
        if self.seed_effect:
            shift = self.seed_effect * generator.normal(size=(*shape[:2], 1))
            right = right / (right + (1 - right) * np.exp(-shift))
        return generator.binomial(self.rows, np.broadcast_to(right, shape)).astype(float), weights

    def _chances(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """How often a prompt is answered right, over seeds."""
        assert self.concentration is not None
        if self.concentration == 0:
            return (generator.random(shape) < SHARE).astype(float)
        if math.isinf(self.concentration):
            return np.full(shape, SHARE)
        return generator.beta(self.concentration * SHARE, self.concentration * (1 - SHARE), shape)


WORLDS = (
    World("right or wrong, every prompt equally hard", math.inf),
    World("prompts differ, answers vary with the seed", 3.0),
    World("prompts differ, answers mostly the same", 0.5),
    World("every seed answers alike, but for one in ten", 0.1),
    World("prompts differ, seeds are better or worse", 3.0, seed_effect=0.4),
    World("the same, 4 rows of each prompt", 3.0, seed_effect=0.4, rows=4),
    World("the same, 16 prompts", 3.0, seed_effect=0.4, prompts=16),
    World("the same, seeds not shared", 3.0, seed_effect=0.4, paired=False),
    World("real numbers, prompts alone", parts=(1, 0, 0.01)),
    World("real numbers, seeds alone", parts=(0, 1, 0.01)),
    World("real numbers, prompts and seeds", parts=(1, 1, 0)),
    World("real numbers, all three", parts=(1, 1, 1)),
    World("means over tokens, all three", parts=(1, 1, 1), token_spread=0.5),
    World("best of 4, prompts differ", 0.5, configurations=4),
    World("best of 4, prompts and seeds", parts=(1, 1, 0), configurations=4),
)


@dataclass(frozen=True)
class Rates:
    """Of simulated studies, in percent."""

    false_alarms: float  # a difference is called significant
    over_seeds: float  # the same by the test of seeds alone, which takes the prompts for the population
    covered: float  # the interval of one configuration's mean holds the true one


def simulate(world: World, seeds: int, studies: int, seed: int = 0) -> Rates:
    """Draw studies of a world and judge each as the report does."""
    generator = np.random.default_rng([seed, seeds, *world.name.encode()])
    alarms = over_seeds = covered = 0
    for _ in range(studies):
        values, weights = world.draw(generator, seeds)
        samples = [
            crossed.seed_sample([influence(each, weights) for each in by_seed], ()) for by_seed in values
        ]
        compared = crossed.paired_difference if world.paired else crossed.unpaired_difference
        alarms += _any_significant(samples, compared)
        plain = stats.paired_difference if world.paired else stats.welch_difference
        over_seeds += _any_significant([sample.means for sample in samples], plain)
        covered += _covers(crossed.mean(samples[0]), world)
    return Rates(*(100 * count / studies for count in (alarms, over_seeds, covered)))


def _any_significant(samples: Sequence, compare: Callable[..., stats.Estimate]) -> bool:
    """Whether the best differs significantly from any other, after Holm's correction for all pairs."""
    centers = [float(np.mean(getattr(sample, "means", sample))) for sample in samples]
    best = samples[int(np.argmax(centers))]
    p_values = [1.0 if (p := compare(each, best).p) is None else p for each in samples if each is not best]
    return min(stats.holm(p_values, len(samples) * (len(samples) - 1) // 2)) < 0.05


def _covers(mean: stats.Estimate, world: World) -> bool:
    if world.concentration is None:
        low, high = mean.ci95 or (mean.value, mean.value)
        return low <= 0 <= high
    half_width = (mean.ci95[1] - mean.ci95[0]) / 2 if mean.ci95 else 0.0
    low, high = share_interval(mean.value, half_width, world.prompts, math.inf)
    return low <= SHARE <= high


Draw = Callable[[np.random.Generator, int], Scores]


def _share(chance: float, rows: int = 1, concentration: float = 0.0) -> Draw:
    """Right or wrong rows, `rows` of each prompt, which agree the more the lower the concentration."""

    def draw(generator: np.random.Generator, prompts: int) -> Scores:
        if concentration:
            right = generator.beta(concentration * chance, concentration * (1 - chance), prompts)
        else:
            right = (generator.random(prompts) < chance).astype(float)
        values = generator.random((prompts, rows)) < right[:, None]
        return Scores(values.ravel().astype(float).tolist(), None, True, _owners(prompts, rows))

    return draw


def _owners(prompts: int, rows: int) -> list[int]:
    return np.arange(prompts).repeat(rows).tolist()


def _ties(generator: np.random.Generator, prompts: int) -> Scores:
    return Scores(generator.choice([0.0, 0.5, 1.0], prompts, p=[0.2, 0.2, 0.6]).tolist(), share=True)


def _mean(rows: int, agreement: float) -> Draw:
    """Normal values whose prompts have this share of the variance."""

    def draw(generator: np.random.Generator, prompts: int) -> Scores:
        shared, own = generator.normal(size=(prompts, 1)), generator.normal(size=(prompts, rows))
        values = math.sqrt(agreement) * shared + math.sqrt(1 - agreement) * own
        return Scores(values.ravel().tolist(), prompts=_owners(prompts, rows))

    return draw


def _skewed(spread: float) -> Draw:
    """Log-normal values: skewness 1.8 for a spread of 0.5, as of words per answer; 6.2 for 1."""
    center = math.exp(spread**2 / 2)
    return lambda generator, prompts: Scores((generator.lognormal(0, spread, prompts) - center).tolist())


def _tokens(spread: float) -> Draw:
    """Losses per token of rows whose numbers of tokens are log-normal."""

    def draw(generator: np.random.Generator, prompts: int) -> Scores:
        tokens = np.ceil(generator.lognormal(4, spread, prompts))
        return Scores((tokens * generator.normal(0, 0.3, prompts)).tolist(), tokens.tolist())

    return draw


def _token_accuracy(generator: np.random.Generator, prompts: int) -> Scores:
    tokens = np.ceil(generator.lognormal(4, 0.7, prompts)).astype(int)
    right = generator.binomial(tokens, generator.beta(7, 3, prompts))
    return Scores(right.astype(float).tolist(), tokens.astype(float).tolist(), share=True)


INTERVALS: dict[str, tuple[Draw, float]] = {  # by name: how rows are drawn, and their true mean
    "share of 0.5": (_share(0.5), 0.5),
    "share of 0.9": (_share(0.9), 0.9),
    "share of 0.98": (_share(0.98), 0.98),
    "share with ties": (_ties, 0.7),
    "share of 0.8, 4 rows of a prompt": (_share(0.8, 4, 2.0), 0.8),
    "share of 0.8, 4 equal rows of a prompt": (_share(0.8, 4), 0.8),
    "share of tokens": (_token_accuracy, 0.7),
    "mean": (_mean(1, 0.0), 0.0),
    "mean, 4 rows of a prompt": (_mean(4, 0.5), 0.0),
    "mean, 4 equal rows of a prompt": (_mean(4, 1.0), 0.0),
    "mean over tokens": (_tokens(0.5), 0.0),
    "mean over tokens, lengths far apart": (_tokens(1.0), 0.0),
    "skewed mean, as of words": (_skewed(0.5), 0.0),
    "very skewed mean": (_skewed(1.0), 0.0),
}


def coverage(name: str, prompts: int, studies: int, seed: int = 0) -> float:
    """In percent: how often the interval of one run's metric holds the true mean."""
    draw, truth = INTERVALS[name]
    generator = np.random.default_rng([seed, prompts, *name.encode()])
    hits = 0
    for _ in range(studies):
        low, high = draw(generator, prompts).estimate()["ci95"] or (math.nan, math.nan)
        hits += low - 1e-9 <= truth <= high + 1e-9
    return 100 * hits / studies


def tables(studies: int) -> dict[str, str]:
    """Markdown tables by the name of their place in docs/STATISTICS.md."""
    alarms, covered = [], []
    for world in WORLDS:
        rates = [simulate(world, seeds, studies) for seeds in SEEDS]
        alarms.append([world.name, *(f"{each.false_alarms:.1f} ({each.over_seeds:.0f})" for each in rates)])
        covered.append([world.name, *(f"{each.covered:.1f}" for each in rates)])
    rows = [[name, *(f"{coverage(name, prompts, studies):.1f}" for prompts in PROMPTS)] for name in INTERVALS]
    by_seeds = [f"{seeds} seeds" for seeds in SEEDS]
    return {
        "false alarms": _table(["nothing differs; 64 prompts, 2 configurations", *by_seeds], alarms),
        "means": _table(["the mean of one configuration", *by_seeds], covered[:-2]),
        "rows": _table(["one run", *(f"{prompts} prompts" for prompts in PROMPTS)], rows),
    }


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print the tables, or write them."""
    assert __doc__
    parser = argparse.ArgumentParser(
        "python -m benchmarks.statistics", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--studies", type=int, default=3000, help="simulated studies of each cell")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    arguments = parser.parse_args()
    simulated = tables(arguments.studies)
    for name, table in simulated.items():
        print(f"\n{name}\n\n{table}")
    if arguments.write:
        PAGE.write_text(with_tables(PAGE.read_text(), simulated))


def with_tables(page: str, simulated: dict[str, str]) -> str:
    """The page with the tables between their marks. Raises ValueError where it lacks one."""
    for name, table in simulated.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if start not in page or end not in page:
            raise ValueError(f"{PAGE}: no {start.strip()} ... {end}")
        page = page[: page.index(start)] + start + table + "\n" + page[page.index(end) :]
    return page


if __name__ == "__main__":
    main()
