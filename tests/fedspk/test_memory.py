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
network = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 7, 2, 3), torch.nn.MaxPool2d(3, 2), torch.nn.Conv2d(16, 32, 5, 2)
)
features = torch.randn(32, 1, 200, 80)
def step():
    torch.autograd.backward(network(features).sum())
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
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


def test_training_steps_reuse_freed_memory_without_page_faults() -> None:
    assert _faults("keep") < 200
