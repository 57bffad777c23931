"""Three dials (sharding, adapter, quantisation) turned into what DeepSpeed, FSDP2, peft and bitsandbytes are given.

Everything is derived from the experiment, so that no number is stated twice. Also the one way to see a sharded model whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .spec import Adapter, Parallel, Quantisation, Sharding

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STAGES = {Sharding.zero1: 1, Sharding.zero2: 2, Sharding.zero3: 3}
NEEDS = {  # what a setting needs besides the lab's own packages: (package, extra of pyproject.toml)
    Sharding.zero1: ("deepspeed", "deepspeed"),
    Sharding.zero2: ("deepspeed", "deepspeed"),
    Sharding.zero3: ("deepspeed", "deepspeed"),
    Quantisation.nf4: ("bitsandbytes", "quantisation"),
    Quantisation.int8: ("bitsandbytes", "quantisation"),
}
BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def missing(parallel: Parallel) -> list[str]:
    """What these dials need and this environment does not have, a sentence each."""
    wanted = [(setting, NEEDS[setting]) for setting in (parallel.sharding, parallel.quantisation) if setting in NEEDS]
    return [
        f"parallel.{type(setting).__name__.lower()}={setting.name}: needs {package}; pip install -e .[{extra}]."
        for setting, (package, extra) in wanted
        if find_spec(package) is None
    ]


def deepspeed_config(parallel: Parallel) -> dict[str, Any] | None:
    """What `TrainingArguments(deepspeed=...)` is given; "auto" is filled in by transformers from the arguments beside it."""
    if parallel.sharding not in STAGES:
        return None
    stage = STAGES[parallel.sharding]
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": "auto"}
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
        zero |= {"stage3_gather_16bit_weights_on_model_save": False}  # `whole` gathers, tensor by tensor
    if parallel.offload:
        zero |= {f"offload_{what}": {"device": "cpu", "pin_memory": True} for what in ("optimizer", "param")}
    return {
        **dict.fromkeys(BATCHES, "auto"),
        "bf16": {"enabled": "auto", "check_grad_overflow": True},  # no step with a gradient that is no number
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def compile_deepspeed() -> None:
    """Build now what DeepSpeed would compile at the first run of several processes on a CPU; nothing where that is not possible."""
    import contextlib
    import os

    os.environ["DS_ACCELERATOR"] = "cpu"
    with contextlib.suppress(Exception):  # no compiler: DeepSpeed says so itself when it is asked to run
        from deepspeed.accelerator import get_accelerator

        get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)


def lora(parallel: Parallel, *, scores: bool) -> Any:
    """peft's LoraConfig; every linear layer but the head where no layers are named. A reward model's new head is trained whole."""
    from peft import LoraConfig

    return LoraConfig(
        r=parallel.rank,
        lora_alpha=parallel.alpha or 2 * parallel.rank,
        lora_dropout=0.0,
        target_modules=list(parallel.targets) if parallel.targets else "all-linear",
        modules_to_save=["score"] if scores else None,
        use_dora=parallel.adapter is Adapter.dora,
        use_rslora=parallel.adapter is Adapter.rslora,
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
    )


def quantised(parallel: Parallel, dtype: torch.dtype) -> Any:
    """transformers' BitsAndBytesConfig, or None. FSDP shards 4-bit weights only where they are stored as `dtype`."""
    if parallel.quantisation is Quantisation.none:
        return None
    from transformers import BitsAndBytesConfig

    if parallel.quantisation is Quantisation.int8:
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


def steady(model: Any) -> None:
    """Let 4-bit layers compute in evaluation mode as they do in training.

    On processors with AVX512-BF16, bitsandbytes otherwise rewrites a layer's weights at its first forward in evaluation mode: rounded to
    bfloat16, and for a kernel that passes no gradient on, so that training after an evaluation goes wrong without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def shard(model: Any) -> None:
    """FSDP2 in place: each decoder layer is a unit, and what is left another. Gathered for forward and backward, freed in between.

    Weights keep their type and autocast casts them, as on one device, so that the numbers are the same.
    """
    from torch.distributed.fsdp import fully_shard

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = set(getattr(plain, "_no_split_modules", None) or ())
    layers = [module for module in plain.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(f"parallel.sharding=fsdp: {type(plain).__name__} does not say what its layers are; use parallel=zero3.")
    for layer in layers:
        fully_shard(layer)
    fully_shard(plain, reshard_after_forward=False)
    plain._is_fsdp_managed_module = True  # by which transformers knows that processes must generate in step


def reshard(model: Any) -> None:
    """Cut again what FSDP2 left gathered."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(
    model: Any, *, wanted: Callable[[str], bool] = lambda name: True, called: Callable[[str], str] = str
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the state of a model, sharded or not, as one process would have it, by name, one after the other, on processors.

    `wanted` chooses by the model's own names, `called` gives others. Every process must go through all of them together: a sharded
    tensor is gathered from all.
    """
    tensors = {called(name): tensor for name, tensor in model.state_dict(keep_vars=True).items() if wanted(name)}
    tied = {key for key, uses in Counter(map(id, tensors.values())).items() if uses > 1}
    known: dict[int, Tensor] = {}
    for name in sorted(tensors):
        key = id(tensors[name])
        found = known[key] if key in known else _gathered(tensors[name])
        if key in tied:
            known[key] = found  # one tensor under two names stays one
        yield name, found


def trained(model: Any) -> set[str]:
    """Names in a model's state of what is trained."""
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}


def _gathered(tensor: Any) -> Tensor:
    if hasattr(tensor, "full_tensor"):  # FSDP2's DTensor
        return tensor.detach().full_tensor().cpu()
    if hasattr(tensor, "ds_id"):  # a parameter that ZeRO-3 partitioned
        from deepspeed import zero

        with zero.GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    return tensor.detach().cpu()


def count(model: Any, *, trained: bool = False) -> int:
    """Parameters, whole ones, however they are sharded."""
    sizes = (getattr(weight, "ds_numel", None) or weight.numel() for weight in model.parameters() if weight.requires_grad or not trained)
    return sum(sizes)
