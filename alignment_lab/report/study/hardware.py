"""The hardware that a run used, as far as it was recorded."""

from __future__ import annotations

from collections import Counter

from .runs import RunRecord


def describe_hardware(record: RunRecord) -> str:
    """`8 x NVIDIA H100`, or the processor and its cores."""
    hardware = record.provenance.get("hardware") or {}
    if accelerators := Counter(hardware.get("accelerators") or []):
        return ", ".join(
            model if count == 1 else f"{count} x {model}" for model, count in accelerators.items()
        )
    if not hardware:
        return "not recorded"
    processor = f"{hardware.get('processor') or 'unknown processor'}, {hardware.get('cores', '?')} cores"
    device = (record.spec.get("parallel") or {}).get("device")
    if device in ("cpu", None):
        return processor
    return f"{processor} (parallel.device={device}; an accelerator was not recorded)"
