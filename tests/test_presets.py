"""Work and time by hand, devices by the driver's names, and which preset `parallel=auto` comes to."""

from __future__ import annotations

import pytest

from alignment_lab import estimate
from alignment_lab.config import Adapter, Parallel, Quantization, Sharding
from alignment_lab.estimate import DEVICES, PRESETS, Device, Workload
from alignment_lab.estimate.devices import _device_from_driver
from alignment_lab.runtime.errors import UserError

LOAD = Workload(1000, 100, 60)


def known(spec):
    return estimate.parameter_counts(spec.model.shape, spec.parallel)


# ---- work


def test_flops_by_hand(composed):
    """8 rows of 100 tokens, 60 scored: 6 x 8 x (106168320 x 100 + 28311552 x 60) FLOPs; 4 where the base is frozen."""
    once = 106_168_320 * 100 + 28_311_552 * 60
    spec, frozen = composed([]), composed(["parallel=lora"])
    assert estimate.step_flops(spec, known(spec), LOAD) == 6 * 8 * once
    assert estimate.step_flops(frozen, known(frozen), LOAD) == 4 * 8 * once
    assert estimate.reference_flops(spec, known(spec), LOAD, steps=10) == 2 * 80 * once
    assert (
        estimate.reference_flops(spec, known(spec), LOAD, steps=10_000) == 2 * 1000 * once
    )  # once, however many epochs
    sft = composed(["method=sft"])
    assert estimate.reference_flops(sft, known(sft), LOAD, steps=10) == 0


def test_a_loss_that_couples_rows_computes_several_passes_once_more(composed):
    spec = composed(["method=aot"])
    alone, several = (estimate.step_flops(spec, known(spec), LOAD, passed) for passed in (1, 3))
    assert several / alone == pytest.approx(8 / 6)


def test_steps_and_passes(composed):
    """1000 rows of 100 tokens: 125 steps of 8 rows, 800 tokens; over 2 processes with passes of 128 tokens 4 each."""
    spec, unknown = composed(["training.num_train_epochs=3"]), Workload(None, 100, 60)
    assert (estimate.steps_per_epoch(spec, LOAD), estimate.total_steps(spec, LOAD)) == (125, 375)
    assert estimate.total_steps(composed(["training.max_steps=7"]), unknown) == 7
    assert estimate.total_steps(spec, unknown) is None
    assert estimate.micro_batches_per_step(spec, LOAD, 128, 2) == 4
    assert estimate.micro_batches_per_step(spec, LOAD, 10**6, 2) == 1


def test_hours_by_hand():
    """Two H100s of 989 TFLOP/s at 40 % compute 2.848e18 FLOPs in an hour."""
    assert estimate.compute_hours(2 * 989e12 * 0.4 * 3600, DEVICES["h100"], 2) == pytest.approx(1)


# ---- devices

CARDS = {
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA L40S": "l40s",
    "NVIDIA RTX A6000": "a6000",
}


def test_every_device_is_known_by_what_the_driver_calls_it(tmp_path, monkeypatch):
    assert set(CARDS.values()) == set(DEVICES) - {"cpu"}
    monkeypatch.setattr("alignment_lab.runtime.hardware.DRIVER_GPUS", tmp_path)
    for number, (card, name) in enumerate(CARDS.items()):
        assert _device_from_driver(card).name == name
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(f"Model: \t\t {card}\nIRQ:   \t\t 16\n")
    assert estimate.local_device(len(CARDS)) == (
        DEVICES["rtx4090"],
        len(CARDS),
    )  # the smallest holds the others back
    assert estimate.local_device(0) == (DEVICES["cpu"], 1)


def test_a_device_that_nobody_knows_is_taken_for_the_smallest_with_its_own_memory(monkeypatch):
    monkeypatch.setattr("alignment_lab.estimate.devices._smallest_memory", lambda: 16.0)
    assert (_device_from_driver("Tesla T4").gb, _device_from_driver("Tesla T4").tflops) == (16.0, 165)
    monkeypatch.setattr("alignment_lab.estimate.devices._smallest_memory", lambda: None)
    assert _device_from_driver("Tesla T4").gb == 24


# ---- presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_dials_of_their_files(name, composed):
    assert composed([f"parallel={name}"]).parallel == PRESETS[name]


def test_the_ladder_goes_from_whole_training_to_four_bits():
    """No preset that trains less stands before one that trains more."""
    kinds = [
        (preset.adapter is not Adapter.none, preset.quantization is not Quantization.none)
        for preset in PRESETS.values()
    ]
    assert kinds == sorted(kinds)


def test_dials_of_a_preset_do_not_ask_one_process_for_several():
    several = Parallel("zero3", sharding=Sharding.zero3, processes=8, nodes=2, offload=True)
    assert estimate.apply_preset(several, PRESETS["single"]) == PRESETS["single"]
    assert estimate.apply_preset(several, PRESETS["fsdp"]).processes == 8


@pytest.fixture
def on(monkeypatch):
    """`on("h100", 8)`: as if this were a machine with eight of them, and every package installed."""

    def machine(device: str | Device, count: int, *, packages: bool = True) -> None:
        found = DEVICES[device] if isinstance(device, str) else device
        monkeypatch.setattr(
            "alignment_lab.estimate.presets.local_device", lambda accelerators=None: (found, count)
        )
        monkeypatch.setattr(
            "alignment_lab.estimate.presets.find_spec", lambda package: object() if packages else None
        )

    return machine


@pytest.mark.parametrize(
    ("model", "device", "count", "preset"),
    [
        ("tiny", "cpu", 1, "single"),
        ("embedded", "rtx4090", 1, "single"),
        ("embedded", "h100", 8, "ddp"),
        ("smollm2-1.7b", "rtx4090", 8, "zero2"),
        ("mistral-7b", "h100", 8, "zero2"),
        ("mistral-7b", "rtx4090", 8, "zero3"),
        ("mistral-7b", "h100", 1, "lora"),
        ("mistral-7b", "h200", 1, "single"),
    ],
)
def test_auto_is_the_least_intrusive_preset_that_fits(model, device, count, preset, composed, on):
    on(device, count)
    choice = estimate.choose_preset(composed([f"model={model}", "parallel=auto"]))
    assert choice.parallel.name == preset
    assert choice.reason.startswith(
        f"parallel=auto is {preset} on {count} x {device} ("
    ) and choice.reason.endswith(".")


def test_a_small_card_gets_four_bits(composed, on):
    on(Device("small", 12, 100), 1)
    assert estimate.choose_preset(composed(["model=mistral-7b", "parallel=auto"])).parallel.name == "qlora"


def test_auto_leaves_out_what_is_not_installed(composed, on):
    on("h100", 8, packages=False)
    assert (
        estimate.choose_preset(composed(["model=mistral-7b", "parallel=auto"])).parallel.name == "fsdp"
    )  # zero2 wants DeepSpeed


def test_auto_says_where_nothing_fits(composed, on):
    on(Device("toy", 2, 1), 1)
    choice = estimate.choose_preset(composed(["model=mistral-7b", "parallel=auto"]))
    assert "nothing fits" in choice.reason
    assert choice.parallel.name == "qlora"


def test_resolving_keeps_everything_but_the_dials_and_happens_once(composed):
    found = estimate.resolve_auto(
        composed(
            ["model=tiny", "parallel=auto", "parallel.processes=2", "parallel.rank=8", "parallel.device=cpu"]
        )
    )
    dials = found.parallel
    assert (dials.processes, dials.rank, dials.device.name, dials.sharding) == (2, 8, "cpu", Sharding.ddp)
    assert estimate.resolve_auto(found) is found
    plain = composed(["parallel=zero3"])
    assert estimate.resolve_auto(plain) is plain


def test_auto_is_the_same_experiment_as_what_it_comes_to(composed):
    auto = estimate.resolve_auto(composed(["model=tiny", "parallel=auto", "parallel.device=cpu"]))
    assert auto.run_id == composed(["model=tiny", "parallel=single", "parallel.device=cpu"]).run_id


def test_auto_in_a_plan_is_for_the_device_that_is_named(composed):
    spec = ["model=mistral-7b", "parallel=auto", "plan.device=h200"]
    assert estimate.resolve_auto(composed([*spec, "action=plan"])).parallel.name == "single"


@pytest.mark.parametrize("dial", ["sharding=zero3", "adapter=lora"])
def test_auto_beside_a_dial_is_refused(dial, composed):
    with pytest.raises(UserError, match=rf"^parallel\.{dial}: parallel=auto chooses it; .*\.$"):
        estimate.resolve_auto(composed(["parallel=auto", f"parallel.{dial}"]))


def test_auto_for_a_model_that_nobody_knows_says_what_it_lacks(composed):
    with pytest.raises(
        UserError, match=r"^parallel=auto: the shape of model=hub is not known here; .*parallel=lora\.$"
    ):
        estimate.resolve_auto(composed(["model=hub", "model.path=org/name", "parallel=auto"]))
