"""The base of the lab's launchers and sweepers, which are not in the package hydra_plugins."""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from ..runtime.library_internals import allow_plugin


class HydraPlugin:
    """A mixin beside Hydra's Launcher or Sweeper: what conf/ sets is in `params`, as plain data."""

    def __init__(self, **params: Any) -> None:
        self.params: dict[str, Any] = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in params.items()
        }

    @classmethod
    def target(cls) -> str:
        """The name by which conf/ asks for it."""
        return f"{cls.__module__}.{cls.__name__}"

    @classmethod
    def register(cls) -> None:
        """Let Hydra instantiate it."""
        allow_plugin(cls.target())
        Plugins.instance().register(cls)


class FailedJobReturn(JobReturn):
    """The result of a cell that failed.

    Hydra's own class prints all overrides before the error; this one only raises it.
    """

    @property
    def return_value(self) -> Any:
        """Raises the error."""
        raise self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value
