"""Compose one experiment, check it, run it.  python train.py method=dpo model=embedded training.max_steps=20"""

from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from alignment_lab.config import parse
from alignment_lab.config.compose import errors_as_sentences, register_with_hydra
from alignment_lab.runtime.files import relative_to_cwd
from alignment_lab.runtime.run_directory import RunDirectory


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """One run, or a cell of a sweep; a cell that fails leaves its directory as a record and lets the others go on; gives its objective."""
    hydra_config = HydraConfig.get()
    run = RunDirectory(relative_to_cwd(Path(hydra_config.runtime.output_dir)))
    with nullcontext() if hydra_config.mode is RunMode.MULTIRUN else errors_as_sentences(discard=run):
        spec = parse(config)
        from alignment_lab.actions.train import execute  # not needed to answer a mistake

        return execute(spec, run)


if __name__ == "__main__":
    register_with_hydra()
    with errors_as_sentences():
        main()
