"""Many cells composed quickly, and the problems of all of them in one list.

The options chosen from groups decide which files of conf/ are read; every other override is a value put in
afterwards. So the files are read once for each choice of options, and the values are put into copies, by
Hydra's own function and in Hydra's own order. A cell for which that fails is composed by Hydra alone, so that
Hydra raises the error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ..config import Experiment, build_experiment, parse, settle_rows, to_schema
from ..config.hydra_errors import describe_hydra_error, is_group_error, is_part_of_null
from ..runtime.errors import UserError
from ..runtime.library_internals import apply_overrides

Check = Callable[[Experiment], list[str]]  # an experiment -> its problems
MAX_PROBLEMS_LISTED = 20  # problems in one error
COMPOSE_ERRORS = (
    UserError,
    HydraException,
    OmegaConfBaseException,
    ValueError,
    AssertionError,
    AttributeError,
)


def no_check(spec: Experiment) -> list[str]:
    """Finds no problem."""
    return []


class Composer:
    """Experiments from overrides, as `compose.compose_experiment` makes them. Needs an initialized Hydra."""

    def __init__(self, config_name: str) -> None:
        self.config_name = config_name
        loader = GlobalHydra.instance().config_loader()
        self._repository = loader.repository
        self._parser = OverridesParser.create(loader)
        self._configs: dict[tuple[str, ...], DictConfig] = {}  # by the overrides that choose options

    def __call__(self, overrides: Sequence[str]) -> Experiment:
        """One experiment, checked; raises as Hydra and `parse` do."""
        parsed = self._parser.parse_overrides(list(overrides))
        options = tuple(
            text for text, override in zip(overrides, parsed, strict=True) if self._is_structural(override)
        )
        values = [override for override in parsed if not self._is_structural(override)]
        try:
            if options not in self._configs:
                self._configs[options] = to_schema(compose(self.config_name, list(options)))
            config = copy.deepcopy(self._configs[options])
            apply_overrides(values, config)
            return settle_rows(build_experiment(config), overrides)
        except Exception:  # Hydra raises the error itself, as for a single cell
            return settle_rows(parse(compose(self.config_name, list(overrides))), overrides)

    def _is_structural(self, override: Override) -> bool:
        """Whether the override chooses an option of a group, or adds or removes a key."""
        return (
            override.key_or_group in ("method.name", "plugin", "plugin_sha256")  # decide on the schema
            or override.package is not None
            or override.type is not OverrideType.CHANGE
            or self._repository.group_exists(override.key_or_group)
        )


def compose_grid(
    grid: Sequence[Sequence[str]], config_name: str, check: Check = no_check
) -> list[Experiment]:
    """The experiment of every cell of a grid of overrides.

    Raises where any cell has a problem: the error itself where there is only one, else UserError with all of
    them.
    """
    compose_cell = Composer(config_name)
    specs: list[Experiment] = []
    errors: dict[str, list[Exception | None]] = {}  # by sentence, one entry for each cell that has it
    for overrides in grid:
        try:
            spec = compose_cell(overrides)
        except COMPOSE_ERRORS as error:
            if not _is_users_mistake(error):
                raise
            errors.setdefault(describe_hydra_error(error), []).append(error)
        else:
            specs.append(spec)
            for sentence in check(spec):
                errors.setdefault(sentence, []).append(None)
    raise_problems(
        {sentence: len(cells) for sentence, cells in errors.items()},
        len(grid),
        next((cells[0] for cells in errors.values()), None),
    )
    return specs


def _is_users_mistake(error: Exception) -> bool:
    described = isinstance(error, UserError | HydraException | OmegaConfBaseException)
    return described or is_group_error(error) or is_part_of_null(error)


def raise_problems(counts: Mapping[str, int], cells: int, only: Exception | None = None) -> None:
    """Raise UserError with all problems, each with the number of cells (of `cells`) that have it.

    A single problem is raised as `only`, where that is given.
    """
    if len(counts) == 1:
        raise only or UserError(next(iter(counts)))
    if counts:
        lines = [
            f"  {sentence}{f' ({count} cells of {cells})' if count > 1 else ''}"
            for sentence, count in list(counts.items())[:MAX_PROBLEMS_LISTED]
        ]
        if len(counts) > MAX_PROBLEMS_LISTED:
            lines.append(f"  and {len(counts) - MAX_PROBLEMS_LISTED} more")
        raise UserError("\n".join([f"{len(counts)} things are wrong, and nothing was started:", *lines]))
