"""What a device's files hold when it is killed, asked twice at once, or cannot write."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import secure_device_files
from secure_device_files import STEPS, FileCohort, contribution, open_device, take

from fedspk.errors import FedspkError
from fedspk.secagg.errors import MessageError, SumRefused
from fedspk.secagg.messages import UploadReply, UploadRequest

VICTIM = "device-0002"
ME = 2


def assert_sum_is_exact(cohort: FileCohort) -> None:
    total = cohort.finish()
    weights = np.array([contribution(name).figures["weight"] for name in cohort.server.survivors])
    assert total.figures["weight"] == weights.sum()
    np.testing.assert_allclose(total.values, np.sum(weights**2), rtol=1e-3)


def assert_shares_of_one_kind(cohort: FileCohort) -> None:
    """No device has answered "unmask" twice, or given both kinds of share of another."""
    for replies in cohort.given.values():
        assert len(replies) <= 1
        seeds = {share.index for reply in replies for share in reply.seed_shares}
        keys = {share.index for reply in replies for share in reply.key_shares}
        assert not seeds & keys


def take_in_own_process(
    cohort: FileCohort, step: str, point: str
) -> subprocess.CompletedProcess[bytes]:
    """Let the device take the step in a process that is killed before or after it records it."""
    return subprocess.run(
        [sys.executable, secure_device_files.__file__, str(cohort.folder), VICTIM, point],
        input=pickle.dumps((step, cohort.request(step, VICTIM))),
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


def kill(cohort: FileCohort, step: str, point: str) -> None:
    """Let the device be killed in a step; no answer leaves it."""
    process = take_in_own_process(cohort, step, point)
    assert (process.returncode, process.stdout) == (-signal.SIGKILL, b""), process.stderr.decode()


def ask_for_everything(cohort: FileCohort) -> None:
    """Ask the device, which starts anew each time, for what it may have forgotten it has given."""
    for dead in ((), (0,), (5,)) * 2:
        for step, request in zip(("survivors", "unmask"), cohort.force(VICTIM, dead), strict=True):
            try:
                reply, _ = take(open_device(cohort.folder, VICTIM), VICTIM, step, request)
            except SumRefused:
                continue
            if step == "unmask":
                cohort.given[VICTIM].append(reply)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, but for the lock."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"}


@pytest.mark.parametrize("point", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_device_killed_as_it_records_a_step_goes_on_from_its_files(tmp_path, step, point):
    cohort = FileCohort(tmp_path)
    cohort.run_to(step)
    kill(cohort, step, point)
    is_recorded = point == "after" and step != "offer"  # an offer is repeated as it was
    if is_recorded:
        with pytest.raises(SumRefused):
            cohort.answer(step, VICTIM)
    else:
        cohort.answer(step, VICTIM)
    assert not list((tmp_path / VICTIM).glob(".*"))
    for name in cohort.names:
        if name != VICTIM:
            cohort.answer(step, name)
    for later in STEPS[STEPS.index(step) + 1 :]:
        cohort.run(later, silent=[VICTIM] if is_recorded else [])
    assert_sum_is_exact(cohort)
    counts = not is_recorded or step in {"survivors", "unmask"}
    assert (VICTIM in cohort.server.survivors) == counts
    ask_for_everything(cohort)
    assert_shares_of_one_kind(cohort)


@pytest.mark.parametrize("point", ["before", "after"])
@pytest.mark.parametrize("step", ["upload", "survivors", "unmask"])
def test_a_killed_device_gives_one_kind_of_share_however_it_is_asked_again(tmp_path, step, point):
    cohort = FileCohort(tmp_path)
    cohort.run_to(step)
    for name in cohort.names:
        if name != VICTIM:
            cohort.answer(step, name)
    kill(cohort, step, point)
    ask_for_everything(cohort)
    assert_shares_of_one_kind(cohort)
    # Unless it was killed with its answer recorded, or has not masked, it has answered.
    silent = (step, point) in {("upload", "before"), ("unmask", "after")}
    assert len(cohort.given[VICTIM]) == (not silent)


@pytest.mark.parametrize("step", STEPS)
def test_an_answer_that_cannot_be_recorded_is_not_given(tmp_path, monkeypatch, step):
    cohort = FileCohort(tmp_path)
    cohort.run_to(step)
    before = contents(tmp_path / VICTIM)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(FedspkError, match="the disk is full"):
            cohort.answer(step, VICTIM)
    assert contents(tmp_path / VICTIM) == before
    cohort.answer(step, VICTIM)


@pytest.mark.parametrize("step", STEPS[1:])
def test_an_answer_that_may_not_outlive_a_power_cut_is_not_given(tmp_path, monkeypatch, step):
    cohort = FileCohort(tmp_path)
    cohort.run_to(step)
    device, request = open_device(tmp_path, VICTIM, durable=True), cohort.request(step, VICTIM)

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(FedspkError, match="Input/output error"):
        take(device, VICTIM, step, request)
    with pytest.raises(SumRefused):  # on the disk, though perhaps not for good
        take(device, VICTIM, step, request)


def test_while_a_device_trains_it_takes_no_other_step(tmp_path):
    cohort = FileCohort(tmp_path)
    cohort.run_to("upload")
    request = cohort.request("upload", VICTIM)
    steps = {step: cohort.request(step, VICTIM) for step in ("offer", "share", "upload")}
    steps |= zip(("survivors", "unmask"), cohort.force(VICTIM, ()), strict=True)
    refused = []

    def compute():
        for step, other in steps.items():
            with pytest.raises(SumRefused, match="still at another step"):
                take(open_device(tmp_path, VICTIM), VICTIM, step, other)
            refused.append(step)
        process = take_in_own_process(cohort, "upload", "after")
        assert b"still at another step" in process.stderr
        return contribution(VICTIM)

    body, vector = open_device(tmp_path, VICTIM).upload(request, "train", compute)
    assert refused == list(STEPS)
    cohort.receive("upload", VICTIM, UploadReply.decode(body), vector)
    for name in cohort.names:
        if name != VICTIM:
            cohort.answer("upload", name)
    cohort.run("survivors")
    cohort.run("unmask")
    assert_sum_is_exact(cohort)


def test_two_devices_of_one_machine_do_not_wait_for_each_other(tmp_path):
    cohort = FileCohort(tmp_path)
    cohort.run_to("upload")

    def compute():
        cohort.answer("upload", cohort.names[ME + 1])
        return contribution(VICTIM)

    open_device(tmp_path, VICTIM).upload(cohort.request("upload", VICTIM), "train", compute)


@pytest.mark.parametrize("what", ["context", "boxes", "no message"])
def test_nothing_is_computed_for_an_upload_that_would_be_refused(tmp_path, what):
    cohort = FileCohort(tmp_path)
    cohort.run_to("upload")
    request = cohort.request("upload", VICTIM)
    upload = UploadRequest.decode(request.body)
    body = {
        "context": msgspec.structs.replace(upload, context=bytes(32)).encode(),
        "boxes": msgspec.structs.replace(upload, boxes=upload.boxes[:2]).encode(),
        "no message": upload.encode()[:-1],
    }[what]
    computed = []

    def compute():
        computed.append(1)
        return contribution(VICTIM)

    with pytest.raises((SumRefused, MessageError)):
        open_device(tmp_path, VICTIM).upload(replace(request, body=body), "train", compute)
    assert not computed


def test_an_upload_that_was_answered_is_not_computed_again(tmp_path):
    cohort = FileCohort(tmp_path)
    cohort.run_to("upload")
    cohort.answer("upload", VICTIM)
    request = cohort.request("upload", VICTIM)
    with pytest.raises(SumRefused, match="answered before"):
        open_device(tmp_path, VICTIM).upload(request, "train", pytest.fail)
