"""A small sample of what `make torture` does: no fault loses a run, a step or a bit.

Its campaigns of closed terminals and pipes are in test_ends.py, once each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("faults")


def test_a_sample_of_faults():
    _survived("signals,damage")


@pytest.mark.slow
@pytest.mark.parametrize("campaigns", ["kills,numbers,soak", "content,foreign,disk,races", "embedded"])
def test_a_sample_of_slow_faults(campaigns):
    """Several share the process that imports everything. Full disks need root, to mount a small one; where
    that is missing the campaign says so.
    """
    _survived(campaigns)


def _survived(campaigns: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(FAULTS), "--quick", "--only", campaigns],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
