"""Keeping freed memory: large tensors are reused without asking the kernel again."""

from __future__ import annotations

import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import resource, sys, torch
from fedspk.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)
torch.set_num_threads(1)
def step():
    return len([torch.ones(2**21) for _ in range(8)])
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    process = subprocess.run(
        [sys.executable, "-c", _COUNT_FAULTS, mode], capture_output=True, text=True, check=False
    )
    if process.returncode == 77:
        pytest.skip("this C library has no mallopt")
    return int(process.stdout)


def test_freed_tensors_are_reused_without_page_faults() -> None:
    assert _faults("keep") < 0.2 * _faults("default")
