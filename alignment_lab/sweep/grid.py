"""Many cells composed quickly, and all that is wrong with them in one list.

Which options of groups are taken decides what is read from conf/; everything else is a value that is put in afterwards. So what is read is
read once for each choice of options, and the values are put into copies, by Hydra's own function and in Hydra's own order. A cell that this
cannot make is composed by Hydra alone, and so are its errors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ..config import Experiment, build_experiment, parse, to_schema
from ..config.hydra_errors import describe_hydra_error, is_group_error, is_part_of_null
from ..runtime.errors import UserError

Check = Callable[[Experiment], list[str]]
SHOWN = 20  # things that are wrong, of a list


class Composer:
    """Experiments from overrides, as `compose.experiment` makes them. Needs an initialized Hydra."""

    def __init__(self, config_name: str) -> None:
        self.config_name = config_name
        loader = GlobalHydra.instance().config_loader()
        self._groups: Any = loader.repository
        self._parser = OverridesParser.create(loader)
        self._read: dict[tuple[str, ...], Any] = {}

    def __call__(self, overrides: Sequence[str]) -> Experiment:
        """One experiment, checked; raises as Hydra and `parse` do."""
        parsed = self._parser.parse_overrides(list(overrides))
        chosen = tuple(word for word, one in zip(overrides, parsed, strict=True) if self._chooses(one))
        try:
            if chosen not in self._read:
                self._read[chosen] = to_schema(compose(self.config_name, list(chosen)))
            config = copy.deepcopy(self._read[chosen])
            ConfigLoaderImpl._apply_overrides_to_config(
                [one for one in parsed if not self._chooses(one)], config
            )
            return build_experiment(config)
        except Exception:  # said by Hydra itself, as for one cell
            return parse(compose(self.config_name, list(overrides)))

    def _chooses(self, override: Override) -> bool:
        """Whether it is about a group, or adds or removes something."""
        named = override.key_or_group == "method.name"  # no setting of any schema
        return (
            named
            or override.package is not None
            or override.type is not OverrideType.CHANGE
            or self._groups.group_exists(override.key_or_group)
        )


def compose_grid(
    grid: Sequence[Sequence[str]], config_name: str, check: Check = lambda _: []
) -> list[Experiment]:
    """The experiment of every cell. Raises where any cell is wrong: the error itself where there is one thing, else UserError with all."""
    compose_cell = Composer(config_name)
    found: list[Experiment] = []
    wrong: dict[str, list[Exception | None]] = {}
    for overrides in grid:
        try:
            found.append(compose_cell(overrides))
        except (
            UserError,
            HydraException,
            OmegaConfBaseException,
            ValueError,
            AssertionError,
            AttributeError,
        ) as error:
            known = isinstance(error, UserError | HydraException | OmegaConfBaseException)
            if not known and not is_group_error(error) and not is_part_of_null(error):
                raise
            wrong.setdefault(describe_hydra_error(error), []).append(error)
        else:
            for sentence in check(found[-1]):
                wrong.setdefault(sentence, []).append(None)
    raise_problems(
        {sentence: len(errors) for sentence, errors in wrong.items()},
        len(grid),
        next((e[0] for e in wrong.values()), None),
    )
    return found


def raise_problems(wrong: dict[str, int], of: int, only: Exception | None = None) -> None:
    """Raise what is wrong, each thing with the number of cells that have it."""
    if len(wrong) == 1:
        raise only or UserError(next(iter(wrong)))
    if wrong:
        lines = [
            f"  {sentence}{f' ({count} cells of {of})' if count > 1 else ''}"
            for sentence, count in list(wrong.items())[:SHOWN]
        ]
        more = [f"  and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise UserError(
            "\n".join([f"{len(wrong)} things are wrong, and nothing was started:", *lines, *more])
        )
