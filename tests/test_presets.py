"""Work and time by hand, devices by the driver's names, and what `parallel=auto` is resolved to."""

from __future__ import annotations

import pytest

from alignment_lab import estimate
from alignment_lab.config import Adapter, Parallel, Quantization, Sharding
from alignment_lab.estimate import DEVICES, PRESETS, Device, Workload
from alignment_lab.estimate.devices import _device_from_driver
from alignment_lab.runtime.errors import UserError

WORKLOAD = Workload(1000, 100, 60)


def counts(spec):
    return estimate.parameter_counts(spec.model.shape, spec.parallel)


# ---- work


def test_flops_by_hand(composed):
    """8 rows of 100 tokens, 60 scored: 6 x 8 x (106168320 x 100 + 28311552 x 60); 4 for a frozen base."""
    products = 106_168_320 * 100 + 28_311_552 * 60
    spec, frozen = composed([]), composed(["parallel=lora"])
    assert estimate.step_flops(spec, counts(spec), WORKLOAD) == 6 * 8 * products
    assert estimate.step_flops(frozen, counts(frozen), WORKLOAD) == 4 * 8 * products
    assert estimate.reference_flops(spec, counts(spec), WORKLOAD, steps=10) == 2 * 80 * products
    # once, however many epochs
    assert estimate.reference_flops(spec, counts(spec), WORKLOAD, steps=10_000) == 2 * 1000 * products
    sft = composed(["method=sft"])
    assert estimate.reference_flops(sft, counts(sft), WORKLOAD, steps=10) == 0


def test_a_loss_that_couples_rows_computes_several_passes_once_more(composed):
    spec = composed(["method=aot"])
    alone, several = (estimate.step_flops(spec, counts(spec), WORKLOAD, passed) for passed in (1, 3))
    assert several / alone == pytest.approx(8 / 6)


def test_steps_and_passes(composed):
    """1000 rows of 100 tokens: 125 steps of 800 tokens; 4 passes of 128 tokens on each of 2 processes."""
    spec, unknown = composed(["training.num_train_epochs=3"]), Workload(None, 100, 60)
    assert (estimate.steps_per_epoch(spec, WORKLOAD), estimate.total_steps(spec, WORKLOAD)) == (125, 375)
    assert estimate.total_steps(composed(["training.max_steps=7"]), unknown) == 7
    assert estimate.total_steps(spec, unknown) is None
    assert estimate.micro_batches_per_step(spec, WORKLOAD, 128, 2) == 4
    assert estimate.micro_batches_per_step(spec, WORKLOAD, 10**6, 2) == 1


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


def test_every_device_is_known_by_its_driver_name(tmp_path, monkeypatch):
    assert set(CARDS.values()) == set(DEVICES) - {"cpu"}
    monkeypatch.setattr("alignment_lab.runtime.hardware.DRIVER_GPUS", tmp_path)
    for number, (card, name) in enumerate(CARDS.items()):
        assert _device_from_driver(card).name == name
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(f"Model: \t\t {card}\nIRQ:   \t\t 16\n")
    # the smallest limits the others
    assert estimate.local_device(len(CARDS)) == (
        DEVICES["rtx4090"],
        len(CARDS),
    )
    assert estimate.local_device(0) == (DEVICES["cpu"], 1)


def test_an_unknown_device_has_the_speed_of_the_smallest_and_its_own_memory(monkeypatch):
    monkeypatch.setattr("alignment_lab.estimate.devices._smallest_memory", lambda: 16.0)
    assert (_device_from_driver("Tesla T4").gb, _device_from_driver("Tesla T4").tflops) == (16.0, 165)
    monkeypatch.setattr("alignment_lab.estimate.devices._smallest_memory", lambda: None)
    assert _device_from_driver("Tesla T4").gb == 24


# ---- presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_settings_of_their_files(name, composed):
    assert composed([f"parallel={name}"]).parallel == PRESETS[name]


def test_presets_go_from_full_training_to_four_bits():
    """No preset that trains less comes before one that trains more."""
    kinds = [
        (preset.adapter is not Adapter.none, preset.quantization is not Quantization.none)
        for preset in PRESETS.values()
    ]
    assert kinds == sorted(kinds)


def test_a_preset_for_one_process_drops_the_number_of_processes():
    several = Parallel("zero3", sharding=Sharding.zero3, processes=8, nodes=2, offload=True)
    assert estimate.apply_preset(several, PRESETS["single"]) == PRESETS["single"]
    assert estimate.apply_preset(several, PRESETS["fsdp"]).processes == 8


@pytest.fixture
def on(monkeypatch):
    """`on("h100", 8)`: simulate a machine with eight of them and every package installed."""

    def machine(device: str | Device, count: int, *, packages: bool = True) -> None:
        machine_device = DEVICES[device] if isinstance(device, str) else device
        monkeypatch.setattr(
            "alignment_lab.estimate.presets.local_device", lambda accelerators=None: (machine_device, count)
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
    # zero2 needs DeepSpeed
    assert estimate.choose_preset(composed(["model=mistral-7b", "parallel=auto"])).parallel.name == "fsdp"


def test_auto_says_that_nothing_fits(composed, on):
    on(Device("toy", 2, 1), 1)
    choice = estimate.choose_preset(composed(["model=mistral-7b", "parallel=auto"]))
    assert "nothing fits" in choice.reason
    assert choice.parallel.name == "qlora"


def test_resolving_changes_only_the_preset_and_happens_once(composed):
    resolved = estimate.resolve_auto(
        composed(
            ["model=tiny", "parallel=auto", "parallel.processes=2", "parallel.rank=8", "parallel.device=cpu"]
        )
    )
    parallel = resolved.parallel
    assert (parallel.processes, parallel.rank, parallel.device.name, parallel.sharding) == (
        2,
        8,
        "cpu",
        Sharding.ddp,
    )
    assert estimate.resolve_auto(resolved) is resolved
    plain = composed(["parallel=zero3"])
    assert estimate.resolve_auto(plain) is plain


def test_auto_is_the_same_experiment_as_the_preset_it_is_resolved_to(composed):
    auto = estimate.resolve_auto(composed(["model=tiny", "parallel=auto", "parallel.device=cpu"]))
    assert auto.run_id == composed(["model=tiny", "parallel=single", "parallel.device=cpu"]).run_id


def test_auto_in_a_plan_is_for_the_device_that_is_named(composed):
    spec = ["model=mistral-7b", "parallel=auto", "plan.device=h200"]
    assert estimate.resolve_auto(composed([*spec, "action=plan"])).parallel.name == "single"


@pytest.mark.parametrize("setting", ["sharding=zero3", "adapter=lora"])
def test_auto_beside_another_setting_is_refused(setting, composed):
    with pytest.raises(UserError, match=rf"^parallel\.{setting}: parallel=auto chooses it; .*\.$"):
        estimate.resolve_auto(composed(["parallel=auto", f"parallel.{setting}"]))


def test_auto_for_a_model_of_unknown_shape_is_refused(composed):
    with pytest.raises(
        UserError, match=r"^parallel=auto: the shape of model=hub is not known here; .*parallel=lora\.$"
    ):
        estimate.resolve_auto(composed(["model=hub", "model.path=org/name", "parallel=auto"]))
