"""Three dials (sharding, adapter, quantization) turned into what DeepSpeed, FSDP2, peft and bitsandbytes are given.

Everything is derived from the experiment, so that no number is stated twice. Also the one way to see a sharded model whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config import Parallel, Quantization, Sharding

if TYPE_CHECKING:
    import torch


def quantization_config(parallel: Parallel, dtype: torch.dtype) -> Any:
    """transformers' BitsAndBytesConfig, or None. FSDP shards 4-bit weights only where they are stored as `dtype`."""
    if parallel.quantization is Quantization.none:
        return None
    from transformers import BitsAndBytesConfig

    if parallel.quantization is Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "score"])
    storage = {"bnb_4bit_quant_storage": dtype} if parallel.sharding is Sharding.fsdp else {}
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", "score"],
        **storage,
    )


def disable_bf16_rewrite(model: Any) -> None:
    """Let 4-bit layers compute in evaluation mode as they do in training.

    On processors with AVX512-BF16, bitsandbytes otherwise rewrites a layer's weights at its first forward in evaluation mode: rounded to
    bfloat16, and for a kernel that passes no gradient on, so that training after an evaluation goes wrong without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
