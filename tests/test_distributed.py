"""Who does what of several processes, and where machines meet."""

import pytest

from alignment_lab.distributed import collectives, ranks
from alignment_lab.distributed.rendezvous import Rendezvous, find_rendezvous
from alignment_lab.runtime import hardware, provenance
from alignment_lab.runtime.errors import UserError

JOB = {"SLURM_JOB_ID": "20123", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}


@pytest.fixture
def processes(monkeypatch):
    """`processes(rank, world)`: this process is one of several."""

    def set_them(rank: int, world: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))

    return set_them


def test_a_process_by_itself_does_everything_and_imports_no_torch():
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


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 6, 16])
def test_shares_are_even_and_everything_counts_once(count, world, processes):
    """Processes that do a thing together do it equally often; what is done again counts for nothing."""
    shares = []
    for rank in range(world):
        processes(rank, world)
        shares.append(ranks.split_between_processes(list(range(count))))
    assert {len(share) for share in shares} == {-(-count // world)}
    assert sorted(thing for share in shares for thing, counts in share if counts) == list(range(count))
    assert all(thing == count - 1 for share in shares for thing, counts in share if not counts)


def test_one_machine_needs_no_address():
    assert find_rendezvous(1, {}) == Rendezvous(1, 0, "127.0.0.1", 0)


def test_machines_meet_where_the_environment_says():
    found = find_rendezvous(2, {"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "1234"})
    assert found == Rendezvous(2, 1, "first", 1234)


def test_machines_of_a_slurm_job_meet_on_its_first_one():
    """Every node works out the same port from the job's number."""
    found = [find_rendezvous(2, {**JOB, "SLURM_NODEID": number}) for number in ("0", "1")]
    assert found == [Rendezvous(2, 0, "n1", 20123), Rendezvous(2, 1, "n1", 20123)]


@pytest.mark.parametrize(
    ("said", "found"),
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
def test_what_the_environment_says_overrules_slurm_each_by_itself(said, found):
    """Where all of it is said, the job need not be one of so many machines."""
    assert find_rendezvous(2, JOB | {"SLURM_NODEID": "1"} | said) == found


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "NODE_RANK=0 to 1 and MASTER_ADDR=HOST"),
        ({"NODE_RANK": "x", "MASTER_ADDR": "a"}, "NODE_RANK=0 to 1"),
        (
            {"SLURM_JOB_ID": "1", "SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "a"},
            "this Slurm job has 4; ask it for 2: sbatch --nodes=2",
        ),
    ],
)
def test_machines_that_cannot_meet_are_a_sentence(environment, said):
    with pytest.raises(UserError, match=r"^parallel\.nodes=2: ") as error:
        find_rendezvous(2, environment)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        (None, {"0": "NVIDIA H100", "1": "NVIDIA L40S", "2": "NVIDIA L40S"}),
        ("2, 0", {"2": "NVIDIA L40S", "0": "NVIDIA H100"}),
        ("GPU-3f1", {"GPU-3f1": "NVIDIA H100"}),
        ("", {}),
        ("-1", {}),
    ],
)
def test_accelerators_are_those_that_the_driver_lists_and_the_environment_leaves(
    said, seen, tmp_path, monkeypatch
):
    monkeypatch.setattr("alignment_lab.runtime.hardware.DRIVER_GPUS", tmp_path)
    for number, card in enumerate(["NVIDIA H100", "NVIDIA L40S", "NVIDIA L40S"]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(f"Model: \t\t {card}\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert dict(zip(hardware.visible_device_ids(), hardware.accelerator_names(), strict=True)) == seen
    assert hardware.count_accelerators() == len(seen)
    described = provenance.collect(2)["hardware"]
    assert described.get("accelerators", []) == list(seen.values())[:2]


def test_without_a_driver_there_is_no_accelerator(tmp_path, monkeypatch):
    monkeypatch.setattr("alignment_lab.runtime.hardware.DRIVER_GPUS", tmp_path / "none")
    assert (
        hardware.visible_device_ids() == hardware.accelerator_names() == []
        and "accelerators" not in provenance.collect(1)["hardware"]
    )
