"""Which process does what, where machines meet, and which accelerators are seen."""

import shutil
import subprocess

import pytest

from alignment_lab.actions import run_action
from alignment_lab.distributed import collectives, ranks
from alignment_lab.distributed.environment import describe_removed, settle_environment
from alignment_lab.distributed.rendezvous import Rendezvous, find_rendezvous
from alignment_lab.runtime import hardware, provenance
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.files import file_digest
from alignment_lab.runtime.run_directory import RunDirectory

JOB = {"SLURM_JOB_ID": "20123", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}


@pytest.fixture
def set_rank(monkeypatch):
    """`set_rank(rank, world_size)`: this process is one of several."""

    def set_environment(rank: int, world_size: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))

    return set_environment


def test_a_single_process_does_everything():
    assert (ranks.rank(), ranks.world_size(), ranks.is_main_process(), ranks.is_launched()) == (
        0,
        1,
        True,
        False,
    )
    assert ranks.split_between_processes(["a", "b"]) == [("a", True), ("b", True)]
    assert collectives.broadcast(7) == 7 and collectives.all_gather(7) == [7]
    with collectives.main_process_first():
        collectives.barrier()


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("total", [0, 1, 5, 6, 16])
def test_shares_are_even_and_every_item_counts_once(total, world_size, set_rank):
    """Processes must take part in collectives equally often; a repeated item does not count."""
    shares = []
    for rank in range(world_size):
        set_rank(rank, world_size)
        shares.append(ranks.split_between_processes(list(range(total))))
    assert {len(share) for share in shares} == {-(-total // world_size)}
    assert sorted(item for share in shares for item, is_own in share if is_own) == list(range(total))
    assert all(item == total - 1 for share in shares for item, is_own in share if not is_own)


def test_one_node_needs_no_address():
    assert find_rendezvous(1, {}) == Rendezvous(1, 0, "127.0.0.1", 0)


def test_nodes_meet_at_the_address_in_the_environment():
    rendezvous = find_rendezvous(2, {"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "1234"})
    assert rendezvous == Rendezvous(2, 1, "first", 1234)


def test_the_nodes_of_a_slurm_job_meet_on_the_first():
    """Every node derives the same port from the job id."""
    rendezvous = [find_rendezvous(2, {**JOB, "SLURM_NODEID": node_id}) for node_id in ("0", "1")]
    assert rendezvous == [Rendezvous(2, 0, "n1", 20123), Rendezvous(2, 1, "n1", 20123)]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MASTER_ADDR": "10.0.0.1"}, Rendezvous(2, 1, "10.0.0.1", 20123)),
        ({"MASTER_PORT": "1234"}, Rendezvous(2, 1, "n1", 1234)),
        ({"NODE_RANK": "0"}, Rendezvous(2, 0, "n1", 20123)),
        (
            {"MASTER_ADDR": "10.0.0.1", "NODE_RANK": "0", "SLURM_NNODES": "1"},
            Rendezvous(2, 0, "10.0.0.1", 29500),
        ),
    ],
)
def test_each_environment_variable_overrides_slurm(variables, expected):
    """Where all of them are set, the job may have another number of nodes."""
    assert find_rendezvous(2, JOB | {"SLURM_NODEID": "1"} | variables) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "NODE_RANK=0 to 1 and MASTER_ADDR=HOST"),
        ({"NODE_RANK": "x", "MASTER_ADDR": "a"}, "NODE_RANK=0 to 1"),
        (
            {"SLURM_JOB_ID": "1", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "a"},
            "this Slurm job has 4; ask it for 2: sbatch --nodes=2",
        ),
    ],
)
def test_nodes_that_cannot_meet_are_one_sentence(environment, message):
    with pytest.raises(UserError, match=r"^parallel\.nodes=2: ") as error:
        find_rendezvous(2, environment)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("cuda_visible_devices", "expected"),
    [
        (None, {"0": "NVIDIA H100", "1": "NVIDIA L40S", "2": "NVIDIA L40S"}),
        ("2, 0", {"2": "NVIDIA L40S", "0": "NVIDIA H100"}),
        ("GPU-3f1", {"GPU-3f1": "NVIDIA H100"}),
        ("", {}),
        ("-1", {}),
    ],
)
def test_accelerators_are_those_of_the_driver_that_cuda_visible_devices_leaves(
    cuda_visible_devices, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr("alignment_lab.runtime.hardware.DRIVER_GPUS", tmp_path)
    for number, name in enumerate(["NVIDIA H100", "NVIDIA L40S", "NVIDIA L40S"]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(f"Model: \t\t {name}\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if cuda_visible_devices is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cuda_visible_devices)
    assert dict(zip(hardware.visible_device_ids(), hardware.accelerator_names(), strict=True)) == expected
    assert hardware.count_accelerators() == len(expected)
    recorded = provenance.collect(2)["hardware"]
    assert recorded.get("accelerators", []) == list(expected.values())[:2]


NVML = """
int nvmlInit_v2(void) { return %d; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(long)(index + 1);
    return 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    const char *text = (long)device == 1 ? "NVIDIA H100" : "NVIDIA L40S";
    for (unsigned i = 0; i < length && (i == 0 || text[i - 1]); i++) name[i] = text[i];
    return 0;
}
"""


@pytest.mark.parametrize("source", ["library", "library without a driver", "device files"])
def test_accelerators_are_found_where_the_driver_has_no_folder_in_proc(source, tmp_path, monkeypatch):
    """WSL2 has the driver's library (here a small one of that interface), gVisor device files as well."""
    for number in ("0", "1", "ctl", "-uvm"):
        (tmp_path / f"nvidia{number}").touch()
    library = tmp_path / "libnvidia-ml.so"
    if source != "device files":
        compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
        (tmp_path / "nvml.c").write_text(NVML % (source != "library"))
        command = [compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.c")]
        subprocess.run(command, check=True)
    monkeypatch.setattr(hardware, "DRIVER_GPUS", tmp_path / "none")
    monkeypatch.setattr(hardware, "DRIVER_LIBRARY", str(library))
    monkeypatch.setattr(hardware, "DEVICE_FILES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    named = ["NVIDIA H100", "NVIDIA L40S"] if source == "library" else ["an accelerator"] * 2
    assert hardware.accelerator_names() == named
    assert hardware.visible_device_ids() == ["0", "1"]


def test_without_a_driver_there_is_no_accelerator(tmp_path, monkeypatch):
    monkeypatch.setattr("alignment_lab.runtime.hardware.DRIVER_GPUS", tmp_path / "none")
    monkeypatch.setattr("alignment_lab.runtime.hardware.DRIVER_LIBRARY", str(tmp_path / "none"))
    monkeypatch.setattr("alignment_lab.runtime.hardware.DEVICE_FILES", tmp_path / "none")
    assert (
        hardware.visible_device_ids() == hardware.accelerator_names() == []
        and "accelerators" not in provenance.collect(1)["hardware"]
    )


# ---- what launchers and shells leave behind

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
LEFT_BEHIND = {  # a variable, and whether it says something else than an experiment on one CPU in float32
    "ACCELERATE_MIXED_PRECISION=bf16": True,
    "ACCELERATE_MIXED_PRECISION=no": False,
    "ACCELERATE_USE_DEEPSPEED=true": True,
    "ACCELERATE_USE_FSDP=true": True,
    "ACCELERATE_USE_FSDP=false": False,
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4": True,
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=1": False,
    "ACCELERATE_DYNAMO_BACKEND=INDUCTOR": True,
    "ACCELERATE_DYNAMO_BACKEND=NO": False,
    "ACCELERATE_USE_CPU=true": False,
    "ACCELERATE_TORCH_DEVICE=meta": True,
    "FSDP_CPU_RAM_EFFICIENT_LOADING=true": False,  # says nothing without ACCELERATE_USE_FSDP
    "OMPI_COMM_WORLD_SIZE=4": True,
    "OMPI_COMM_WORLD_SIZE=1": False,
    "PMI_SIZE=2": True,
    "PMI_RANK=1": False,
    "MV2_COMM_WORLD_LOCAL_RANK=0": False,
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1": True,
    "NVIDIA_TF32_OVERRIDE=0": False,
    "ONEDNN_DEFAULT_FPMATH_MODE=BF16": True,
    "WORLD_SIZE=1": False,
    "LOCAL_RANK=0": False,
    "LOCAL_RANK=1": True,
    "TORCHELASTIC_USE_AGENT_STORE=True": False,
}


@pytest.fixture(scope="module")
def on_a_cpu(composed):
    return composed(["model=tiny", "model.dtype=float32", "parallel.device=cpu"])


@pytest.mark.parametrize(("assignment", "is_told"), LEFT_BEHIND.items())
def test_what_others_left_is_removed_and_told_where_it_says_something_else(assignment, is_told, on_a_cpu):
    name, _, value = assignment.partition("=")
    variables = {name: value, "PATH": "/bin", "MASTER_ADDR": "first", "SLURM_JOB_ID": "1"}
    removed = settle_environment(variables)
    assert removed == {name: value} and name not in variables and len(variables) == 3
    lines = list(describe_removed(removed, on_a_cpu))
    assert [line.startswith(f"{assignment}: is not read") for line in lines] == [True] * is_told
    # neither under torchrun, whose own variables stay
    launched = TORCHRUN | ({} if name in TORCHRUN else {name: value})
    settle_environment(launched)
    assert TORCHRUN.items() <= launched.items()
    assert launched.keys() <= TORCHRUN.keys() | {"TORCHELASTIC_USE_AGENT_STORE"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": None}, "RANK=1: and WORLD_SIZE is not set"),
        ({"RANK": None}, "WORLD_SIZE=2: and RANK is not set"),
        ({"MASTER_ADDR": None}, "WORLD_SIZE=2: and MASTER_ADDR is not set"),
        ({"MASTER_PORT": ""}, "WORLD_SIZE=2: and MASTER_PORT is not set"),
        ({"RANK": "2"}, "RANK=2: must lie below WORLD_SIZE=2"),
        ({"RANK": "eight"}, "RANK=eight: is no number of a process"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1: is no number of a process"),
    ],
)
def test_half_a_launch_is_one_sentence(changes, message):
    merged = TORCHRUN | changes
    variables = {name: value for name, value in merged.items() if value is not None}
    with pytest.raises(UserError) as error:
        settle_environment(variables)
    assert str(error.value).startswith(message) and "by torchrun" in str(error.value)


def test_the_one_process_of_a_pod_is_the_first_of_its_machine():
    """Kubernetes sets RANK and WORLD_SIZE alone; accelerate takes a process without LOCAL_RANK for no part of
    a launch, and its gradients would stay its own.
    """
    for slurm, expected in (({}, "0"), ({"SLURM_LOCALID": "3"}, "3")):
        variables = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"} | slurm
        settle_environment(variables)
        assert variables["LOCAL_RANK"] == expected


def test_a_run_computes_what_its_experiment_says_whatever_the_environment(composed, monkeypatch, tmp_path):
    """Of all variables together: the weights of a run without any, and a line for each that disagrees."""
    spec = composed(
        [
            "model=tiny",
            "model.dtype=float32",
            "parallel.device=cpu",
            "training.max_steps=1",
            "training.global_batch=2",
            "training.learning_rate=1e-2",
            "eval=none",
            "tracking=local",
        ]
    )
    alone, disturbed = RunDirectory(tmp_path / "alone"), RunDirectory(tmp_path / "disturbed")
    run_action(spec, alone)
    left = dict(text.split("=") for text, is_told in LEFT_BEHIND.items() if is_told)
    for name, value in (left | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    run_action(spec, disturbed)
    digests = [file_digest(run.model / "model.safetensors") for run in (alone, disturbed)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 0), "float32"), ((7, 5), "float32"), ((8, 0), "bfloat16")]
)
def test_bfloat16_is_for_accelerators_that_multiply_it(capability, expected, composed, monkeypatch):
    """torch.cuda.is_bf16_supported() is true on a T4 too, which emulates it many times slower."""
    import torch

    from alignment_lab.models.device import device_and_dtype

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert device_and_dtype(composed(["model.dtype=auto", "parallel.device=auto"]))[1] == getattr(
        torch, expected
    )
