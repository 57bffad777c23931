"""What launchers and shells leave in the environment: which of it counts, and which would change the numbers.

The experiment alone says what is computed. Variables by which accelerate, MPI or a vendor's library would say
otherwise are removed before any library reads them, and told in a line where they said something else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping

from ..config import DeviceType, Dtype, Experiment, Sharding
from ..runtime.errors import UserError

ACCELERATE_PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
MPI = (  # accelerate and DeepSpeed take a process of mpirun, or of srun with PMI, for one of several
    *MPI_SIZES,
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMI_RANK",
    "MV2_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
)
PRECISION = (  # with these float32 is not float32
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
)
LAUNCH = (  # one process among several; NODE_RANK, MASTER_ADDR and MASTER_PORT are where machines meet
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_ERROR_FILE",
)
JOINED_BY = ("MASTER_ADDR", "MASTER_PORT")  # how torch finds the other processes
REMEDY = "start the command by torchrun, which sets all of them, or unset RANK, WORLD_SIZE and LOCAL_RANK"
OFF = ("", "0", "no", "false", "none", "off", "strict")
SHORT_NAMES = {Dtype.bfloat16: "bf16", Dtype.float32: "no"}  # accelerate's, of dtypes


def settle_environment(environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Remove what must not be read, and return it.

    Raises UserError where the variables of a launch are not whole: torch would wait for processes that do not
    come, or take the place of another.
    """
    several = _is_one_of_several(environment)
    if several and not environment.get("LOCAL_RANK"):
        # Kubernetes sets none for the one process of a pod; without it accelerate would train it alone
        environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", "0")
    unread = {*MPI, *PRECISION, *(() if several else LAUNCH)}
    names = [name for name in environment if name in unread or name.startswith(ACCELERATE_PREFIXES)]
    return {name: environment.pop(name) for name in names}


def _is_one_of_several(environment: MutableMapping[str, str]) -> bool:
    """Whether a launcher (torchrun, accelerate launch, Kubernetes) started this process as one of several."""
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    _number(environment, "LOCAL_RANK")
    if rank is None and size in (None, 1):
        return False
    if rank is None or size is None:
        there, missing = ("WORLD_SIZE", "RANK") if rank is None else ("RANK", "WORLD_SIZE")
        raise UserError(f"{there}={environment[there]}: and {missing} is not set; {REMEDY}.")
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank}: must lie below WORLD_SIZE={size}; {REMEDY}.")
    missing = ", ".join(name for name in JOINED_BY if not environment.get(name))
    if size > 1 and missing:
        raise UserError(f"WORLD_SIZE={size}: and {missing} is not set; {REMEDY}.")
    return size > 1


def _number(environment: MutableMapping[str, str], name: str) -> int | None:
    text = environment.get(name, "").strip()
    if text and not text.isdecimal():
        raise UserError(f"{name}={text}: is no number of a process; {REMEDY}.")
    return int(text) if text else None


def describe_removed(removed: dict[str, str], spec: Experiment) -> Iterator[str]:
    """A line for each variable that said something else than the experiment does."""
    for name, value in removed.items():
        if _says_something_else(name, value.strip().lower(), spec):
            yield f"{name}={value}: is not read; the experiment alone says what is computed"


def _says_something_else(name: str, value: str, spec: Experiment) -> bool:
    """Whether a variable that says something by itself, and not only beside another one, disagrees."""
    sharding, dtype = spec.parallel.sharding, spec.model.dtype
    if name in MPI_SIZES or name == "ACCELERATE_GRADIENT_ACCUMULATION_STEPS":
        return value not in (*OFF, "1")
    agrees = {
        "ACCELERATE_MIXED_PRECISION": value in (dtype.name, SHORT_NAMES.get(dtype)),
        "ACCELERATE_USE_CPU": spec.parallel.device is DeviceType.cpu,
        "ACCELERATE_USE_DEEPSPEED": sharding in (Sharding.zero1, Sharding.zero2, Sharding.zero3),
        "ACCELERATE_USE_FSDP": sharding is Sharding.fsdp,
        "ACCELERATE_TORCH_DEVICE": value == spec.parallel.device.name,
    }
    others = ("ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG", "ACCELERATE_DYNAMO_BACKEND")
    return value not in OFF and name in (*agrees, *others, *PRECISION, "LOCAL_RANK") and not agrees.get(name)
