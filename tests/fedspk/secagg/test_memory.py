from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells peaks of memory")

_SUPPORT = Path(__file__).parents[2] / "support"
_LENGTH = 8_000_000


def _peak(*arguments):
    """Return the most memory of a secure sum in a fresh process, over one vector's."""
    paths = os.pathsep.join([str(_SUPPORT), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, str(_SUPPORT / "sum_memory.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout) / (4 * _LENGTH)


def test_a_device_masks_in_two_and_a_half_times_its_update():
    update = 1.0  # there before
    assert 1.9 < update + _peak("device", _LENGTH) <= 2.5


def test_the_aggregators_memory_does_not_grow_with_the_devices():
    few, many = (_peak("aggregator", _LENGTH, count) for count in (5, 20))
    assert 0.9 < few < 2.5
    assert many == pytest.approx(few, abs=0.05)
