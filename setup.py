"""What pyproject.toml cannot say: a wheel carries the option files of conf/ as alignment_lab/conf."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONF = Path("conf")


class BuildWithConf(build_py):
    """Copies conf/ into the package; an editable install uses the checkout's own, see runtime/paths.py."""

    def run(self) -> None:
        """Build the package, then add the option files."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "alignment_lab" / "conf"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build, with options that are gone
            shutil.copytree(CONF, target)

    def get_source_files(self) -> list[str]:
        """For a source distribution."""
        return [*super().get_source_files(), *(str(file) for file in sorted(CONF.rglob("*.yaml")))]


setup(cmdclass={"build_py": BuildWithConf})
