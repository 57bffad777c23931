"""A small sample of what `make torture` does: no fault loses a run, a step or a bit.

Its campaigns of closed terminals and pipes are in test_ends.py, once each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("faults")


@pytest.mark.parametrize("campaign", ["signals", "damage"])
def test_a_sample_of_faults(campaign):
    _survived(campaign)


@pytest.mark.slow
@pytest.mark.parametrize(
    "campaign", ["kills", "numbers", "content", "foreign", "disk", "races", "soak", "embedded"]
)
def test_a_sample_of_slow_faults(campaign):
    """Full disks need root, to mount a small one; where that is missing the campaign says so."""
    _survived(campaign)


def _survived(campaign: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(FAULTS), "--quick", "--only", campaign],
        capture_output=True,
        text=True,
        timeout=900,
    )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
