"""Quantized weights by bitsandbytes: the configuration, and a fix for how 4-bit layers compute on CPUs.

Knows the `parallel` settings and module attributes. Imports no torch before a model is quantized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config import Parallel, Quantization, Sharding

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

SKIPPED_MODULES = ["lm_head", "score"]  # never quantized


def quantization_config(parallel: Parallel, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """transformers' BitsAndBytesConfig, or None.

    FSDP can shard 4-bit weights only where they are stored as `dtype`.
    """
    if parallel.quantization is Quantization.none:
        return None
    from transformers import BitsAndBytesConfig

    if parallel.quantization is Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(SKIPPED_MODULES))
    storage = {"bnb_4bit_quant_storage": dtype} if parallel.sharding is Sharding.fsdp else {}
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(SKIPPED_MODULES),
        **storage,
    )


def disable_bf16_rewrite(model: Any) -> None:
    """Let 4-bit layers compute in evaluation mode as they do in training.

    On CPUs with AVX512-BF16, bitsandbytes otherwise rewrites a layer's weights at its first forward in
    evaluation mode: they are rounded to bfloat16, for a kernel that passes no gradient on. Training after an
    evaluation would then be silently wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
