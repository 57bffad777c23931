"""The data group: which rows to read, how to split them, and how long one may be."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum

from ..validation import SpecError, require
from .data_cleaning import Cleaning
from .data_source import DataSource, Source, check_source, require_exists

BadRows = Enum("BadRows", ["error", "drop"])
Rejected = Enum("Rejected", ["worst", "random"])
Truncation = Enum("Truncation", ["answer", "prompt"])


@dataclass
class Data:
    """Which rows to read, how to split them, and how long one may be."""

    name: str = "data"
    source: DataSource = DataSource.hub
    path: str | None = None  # a Hub id, or a file, a folder or a pattern of files
    config: str | None = None  # the configuration on the Hub, or of a folder that was fetched from it
    revision: str | None = None  # a branch, tag or commit on the Hub
    split: str = "train"
    eval_path: str | None = None  # a file with the held-out rows; null: taken from the training rows
    eval_split: str | None = None  # the same, for a split of data.path
    sources: dict[str, Source] = field(default_factory=dict)  # a mixture, instead of the five above
    rows: int | None = None  # of a mixture by weights; null: as many as none of its sources is too small for
    mixture_seed: int = 0  # of what is chosen from sources, and of random rejected answers
    eval_fraction: float = 0.1  # share of the prompts that is held out, where no held-out rows are named
    # of a row with several scored answers: which of the worse ones is set against the best
    rejected: Rejected = Rejected.worst
    max_length: int = 1024  # tokens of prompt and answer
    # a longer row loses its answer's end, or its prompt's beginning; half of max_length stays of a prompt
    truncation: Truncation = Truncation.answer
    streaming: bool = (
        False  # read only the rows that training.max_steps needs, in order; nothing is downloaded whole
    )
    clean: Cleaning = field(default_factory=Cleaning)
    bad_rows: BadRows = BadRows.error  # more than max_bad_fraction: stop and show some, or leave all out
    max_bad_fraction: float = 0.01  # of the rows of a file or a split, that may be left out as unusable

    def __post_init__(self) -> None:
        require(
            0 < self.eval_fraction < 1,
            "data.eval_fraction",
            self.eval_fraction,
            "must be above 0 and below 1: it is the share of the prompts that is held out, at least one; "
            "name other held-out rows with data.eval_path or data.eval_split, and none is taken from these.",
        )
        require(
            0 <= self.max_bad_fraction <= 1,
            "data.max_bad_fraction",
            self.max_bad_fraction,
            "must lie between 0 and 1: it is a share.",
        )
        require(self.max_length >= 8, "data.max_length", self.max_length, "must be at least 8 tokens.")
        require(
            0 <= self.mixture_seed < 2**32,
            "data.mixture_seed",
            self.mixture_seed,
            "must lie between 0 and 2**32 - 1.",
        )
        require(self.rows is None or self.rows > 0, "data.rows", self.rows, "must be above 0.")
        if self.sources:
            self._check_mixture()
        else:
            self._check_source()
        if self.source is DataSource.local:
            require_exists("data.path", self.path)
            require_exists("data.eval_path", self.eval_path)

    def mixture(self) -> dict[str, Source]:
        """The sources by name, in its order: a single file, data set or split is a mixture of one."""
        if self.sources:
            return dict(sorted(self.sources.items()))
        return {
            self.name: Source(
                self.source,
                self.path,
                self.config,
                self.revision,
                train=self.split,
                eval=self.eval_split,
                eval_path=self.eval_path,
            )
        }

    def key(self, name: str, setting: str) -> str:
        """The dotted key of a setting of the source `name`, as it is typed: `data.sources.uf.train`, or
        `data.split` where the data is no mixture.
        """
        if self.sources:
            return f"data.sources.{name}.{setting}"
        return f"data.{_FLAT_KEYS.get(setting, setting)}"

    def is_on_hub(self) -> bool:
        """Whether any rows are read from the Hub."""
        return any(source.kind is DataSource.hub for source in self.mixture().values())

    def names_heldout(self) -> bool:
        """Whether the rows that are held out are named, so that none is taken from the training rows."""
        sources = self.mixture().values()
        return any(source.has_eval or source.kind is DataSource.embedded for source in sources)

    def _check_mixture(self) -> None:
        """Refuse what is set beside the sources, and sources that do not fit together."""
        require(
            self.source is DataSource.hub,
            "data.sources",
            ", ".join(self.sources),
            f"data={self.name} has rows of its own; choose data=mixture beside data.sources.",
        )
        for setting in fields(self):
            value = getattr(self, setting.name)
            require(
                setting.name not in ONE_SOURCE or value == setting.default,
                f"data.{setting.name}",
                value,
                f"the rows are those of data.sources ({', '.join(self.sources)}); leave it out, or make it "
                "one of them: +data/source@data.sources.NAME=local.",
            )
        for name, source in self.sources.items():
            require(
                name.isidentifier() or name.replace("-", "_").isidentifier(),
                "data.sources",
                name,
                "a source is named by letters, digits, - and _, as in data.sources.uf.",
            )
            check_source(f"data.sources.{name}", source)
        trained = {name: source for name, source in self.sources.items() if source.has_train}
        if not trained:
            raise SpecError(
                f"data.sources.{next(iter(self.sources))}.train=null: no source is trained on; give one a "
                "split to train on."
            )
        weighed = [name for name, source in trained.items() if source.weight is not None]
        others = [name for name in trained if name not in weighed]
        if weighed and others:
            raise SpecError(
                f"data.sources.{weighed[0]}.weight: it is a share of the whole mixture, and "
                f"{', '.join(others)} {'have' if len(others) > 1 else 'has'} none; give every source a "
                "weight, or each a fraction or a count."
            )
        require(
            self.rows is None or bool(weighed),
            "data.rows",
            self.rows,
            "it is the size of a mixture by weights; give each source a weight, or leave it out.",
        )
        require(
            not self.streaming,
            "data.streaming",
            "true",
            "a mixture is chosen from all rows; leave it out, or stream one source with data.path.",
        )

    def _check_source(self) -> None:
        embedded, local = self.source is DataSource.embedded, self.source is DataSource.local
        require(
            embedded or bool(self.path),
            "data.path",
            self.path,
            "name the rows: data=local data.path=rows.jsonl, or a mixture's source: "
            "+data/source@data.sources.uf=ultrafeedback_binarized.",
        )
        require(
            not embedded or not self.path,
            "data.path",
            self.path,
            "the embedded data has no path; add data=local for your own file.",
        )
        require(
            not embedded or not self.streaming,
            "data.streaming",
            "true",
            "the embedded data is on disk and small; leave it out, or use data=hub.",
        )
        require(
            local or not self.eval_path,
            "data.eval_path",
            self.eval_path,
            "only data=local reads held-out rows from a file; of the Hub name a split with data.eval_split.",
        )
        require(
            not self.eval_path or self.eval_split is None,
            "data.eval_split",
            self.eval_split,
            f"the held-out rows are those of data.eval_path={self.eval_path} already; leave one of them out.",
        )
        require(
            not embedded or not self.eval_split,
            "data.eval_split",
            self.eval_split,
            "the embedded data has held-out rows of its own; leave it out, or use data=hub.",
        )
        require(
            self.source is DataSource.hub or self.revision is None,
            "data.revision",
            self.revision,
            "only the Hub has revisions; leave it out, or use data=hub.",
        )
        require(
            self.rows is None,
            "data.rows",
            self.rows,
            "it is the size of a mixture by weights; name its sources, or leave it out.",
        )


_FLAT_KEYS = {"train": "split", "eval": "eval_split", "kind": "source"}
ONE_SOURCE = (
    "path",
    "config",
    "revision",
    "split",
    "eval_path",
    "eval_split",
)  # settings of a mixture of one
