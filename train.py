"""Compose one experiment, check it, run it.  python train.py method=dpo model=embedded training.max_steps=20"""

from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from alignment_lab.artifacts import RunDirectory, from_here
from alignment_lab.compose import one_sentence, prepare
from alignment_lab.spec import parse


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """One run, or a cell of a sweep; a cell that fails leaves its directory as a record and lets the others go on; gives its objective."""
    hydra_config = HydraConfig.get()
    run = RunDirectory(from_here(Path(hydra_config.runtime.output_dir)))
    with nullcontext() if hydra_config.mode is RunMode.MULTIRUN else one_sentence(discard=run):
        spec = parse(config)
        from alignment_lab.run import execute  # not needed to answer a mistake

        return execute(spec, run)


if __name__ == "__main__":
    prepare()
    with one_sentence():
        main()
