"""How the lab's own launchers and sweepers come to Hydra, which makes only those of the package hydra_plugins."""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from omegaconf import OmegaConf


class HydraPlugin:
    """Beside Hydra's Launcher or Sweeper: what conf/ sets is in `params`, as plain data."""

    def __init__(self, **params: Any) -> None:
        self.params: dict[str, Any] = {
            name: OmegaConf.to_container(one) if OmegaConf.is_config(one) else one
            for name, one in params.items()
        }

    @classmethod
    def target(cls) -> str:
        """The name by which conf/ asks for it."""
        return f"{cls.__module__}.{cls.__name__}"

    @classmethod
    def register(cls) -> None:
        """Let Hydra make it."""
        ours, theirs = cls.target(), Plugins.is_in_toplevel_plugins_module
        Plugins.is_in_toplevel_plugins_module = staticmethod(lambda name: name == ours or theirs(name))
        Plugins.instance().register(cls)
