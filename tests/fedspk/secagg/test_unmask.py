from __future__ import annotations

import multiprocessing
import os
from hashlib import sha256

import numpy as np
import pytest

from fedspk.secagg.keys import AgreementKey
from fedspk.secagg.masks import add_masks, common_mask, own_mask
from fedspk.secagg.unmask import Failed, MaskRemover, Survived

CONTEXT = bytes(32)


def masked_sum(length: int, survivors: int, failed: int, dtype=np.uint32):
    """Return the sum of masked vectors of ones, and what is known for unmasking it."""
    keys = [AgreementKey.generate() for _ in range(survivors + failed)]
    total = np.full(length, survivors, dtype)
    alive = [Survived(device, sha256(bytes([device])).digest()) for device in range(survivors)]
    dead = [
        Failed(
            device,
            keys[device].private,
            tuple((other, keys[other].public) for other in range(0, survivors, 2)),
        )
        for device in range(survivors, survivors + failed)
    ]
    streams = [own_mask(seed, CONTEXT, device) for device, seed in alive]
    streams += [
        common_mask(keys[other].agree(keys[device].public), CONTEXT, other, device)
        for device, _, others in dead
        for other, _ in others
    ]
    add_masks(total, streams)
    return total, alive, dead


def children() -> set[int]:
    return {process.pid for process in multiprocessing.active_children()}


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("failed", [0, 3])
def test_only_the_sum_remains(dtype, failed):
    total, alive, dead = masked_sum(1001, 7, failed, dtype)
    MaskRemover().remove(total, CONTEXT, alive, dead)
    assert (total == 7).all()


def test_little_work_starts_no_process():
    before = children()
    total, alive, dead = masked_sum(1000, 5, 2)
    with MaskRemover(workers=4) as remover:
        remover.remove(total, CONTEXT, alive, dead)
        assert children() == before
    assert (total == 5).all()


def test_helpers_do_their_part_stay_and_end():
    before = children()
    with MaskRemover(workers=3) as remover:
        for _ in range(2):
            total, alive, dead = masked_sum(400_003, 200, 8)
            remover.remove(total, CONTEXT, alive, dead)
            assert (total == 200).all()
            helpers = children() - before
            assert len(helpers) == 2
    assert children() == before


def test_the_sum_outlives_its_helpers():
    before = children()
    with MaskRemover(workers=2) as remover:
        for _ in range(2):
            total, alive, dead = masked_sum(400_003, 200, 8)
            remover.remove(total, CONTEXT, alive, dead)
            assert (total == 200).all()
            for helper in children() - before:
                os.kill(helper, 9)


def test_a_vector_longer_than_what_travels_at_a_time_is_done_in_parts():
    total, alive, _ = masked_sum(9_000_001, 3, 0)
    with MaskRemover(workers=2) as remover:
        remover.remove(total, CONTEXT, alive, [])
    assert (total == 3).all()
