from __future__ import annotations

import json
import math
import signal
import subprocess
import sys

import pytest
from dp_accounting import get_epsilon_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from nonsense import damaged, nested

from fedspk.errors import FedspkError
from fedspk.secagg.config import PrivacyConfig
from fedspk.secagg.ledger import PrivacyLedger, spent_epsilon

_CONFIG = PrivacyConfig(noise_multiplier=2.0, epsilon=8.0, delta=1e-3)


def _affordable(config):
    sums = 0
    while spent_epsilon(config.noise_multiplier, sums + 1, config.delta) <= config.epsilon:
        sums += 1
    return sums


def test_epsilon_is_close_above_the_exact_one_of_the_gaussian():
    for noise, sums in ((1.0, 1), (2.15, 20), (6.0, 100)):
        exact = get_epsilon_gaussian(noise / math.sqrt(sums), 1e-5)
        assert exact <= spent_epsilon(noise, sums, 1e-5) <= 1.15 * exact


def test_nothing_is_spent_before_the_first_sum(tmp_path):
    ledger = PrivacyLedger(tmp_path / "ledger.json", _CONFIG)
    ledger.plan([])
    assert ledger.epsilon == 0
    assert not (tmp_path / "ledger.json").exists()


def test_a_sum_over_budget_is_refused_and_not_written(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = PrivacyLedger(path, _CONFIG)
    for _ in range(_affordable(_CONFIG)):
        ledger.plan(["anna", "ben"])
    spent, written = ledger.epsilon, path.read_bytes()
    assert spent <= _CONFIG.epsilon
    with pytest.raises(FedspkError, match=r"device anna .* over the budget of 8"):
        ledger.plan(["anna", "carl"])
    assert (ledger.epsilon, path.read_bytes()) == (spent, written)


def test_every_device_has_its_own_budget(tmp_path):
    ledger = PrivacyLedger(tmp_path / "ledger.json", _CONFIG)
    affordable = _affordable(_CONFIG)
    for _ in range(affordable):
        ledger.plan(["anna"])
    for _ in range(affordable):
        ledger.plan(["ben"])
    with pytest.raises(FedspkError, match="ben"):
        ledger.plan(["ben"])


def test_a_device_named_twice_pays_twice(tmp_path):
    once, twice = (PrivacyLedger(tmp_path / name, _CONFIG) for name in ("once", "twice"))
    once.plan(["anna"])
    once.plan(["anna"])
    twice.plan(["anna", "anna"])
    assert once.epsilon == twice.epsilon


def test_a_new_process_continues_the_ledger(tmp_path):
    path = tmp_path / "ledger.json"
    PrivacyLedger(path, _CONFIG).plan(["anna"])
    again = PrivacyLedger(path, _CONFIG)
    assert again.epsilon == spent_epsilon(2.0, 1, 1e-3)
    again.plan(["anna"])
    assert PrivacyLedger(path, _CONFIG).epsilon == spent_epsilon(2.0, 2, 1e-3)


def _run(path, code):
    program = (
        "import os, pathlib, signal, sys\n"
        "from fedspk.secagg.ledger import PrivacyLedger\n"
        "from fedspk.secagg.config import PrivacyConfig\n"
        "config = PrivacyConfig(noise_multiplier=2.0, epsilon=8.0, delta=1e-3)\n"
        f"ledger = PrivacyLedger(pathlib.Path(sys.argv[1]), config)\n{code}"
    )
    return subprocess.run(
        [sys.executable, "-c", program, str(path)], check=False, capture_output=True, text=True
    )


def test_a_crash_between_planning_and_the_sum_is_counted(tmp_path):
    path = tmp_path / "ledger.json"
    ended = _run(path, "ledger.plan(['anna'])\nos.kill(os.getpid(), signal.SIGKILL)")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert PrivacyLedger(path, _CONFIG).epsilon == spent_epsilon(2.0, 1, 1e-3)


def test_a_crash_while_writing_leaves_the_last_whole_ledger_and_no_sum_begun(tmp_path):
    path = tmp_path / "ledger.json"
    code = (
        "ledger.plan(['anna'])\n"
        "print('sum 1', flush=True)\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"  # the power fails here
        "ledger.plan(['anna'])\n"
        "print('sum 2', flush=True)\n"
    )
    ended = _run(path, code)
    assert ended.stdout == "sum 1\n"
    assert PrivacyLedger(path, _CONFIG).epsilon == spent_epsilon(2.0, 1, 1e-3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 2, "privacy": {}, "sums": {}}',
        b'{"format": 1, "privacy": {}, "sums": {"anna": 0}}',
        b'{"format": 1, "privacy": {}, "sums": {"anna": -3}}',
        b'{"format": 1, "privacy": {}, "sums": {"anna": 1.5}}',
        b'{"format": 1, "privacy": {}, "sums": {}, "more": 1}',
        b'{"devices": {"anna": "00"}, "format": 1}',
    ],
)
def test_a_file_that_is_no_ledger_is_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "ledger.json"
    path.write_bytes(content)
    with pytest.raises(FedspkError, match=r"ledger.json: is not a privacy ledger \(.*\)\.$"):
        PrivacyLedger(path, _CONFIG)
    assert path.read_bytes() == content


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_damaged_ledger_is_one_sentence_or_a_ledger(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.unlink(missing_ok=True)
    PrivacyLedger(path, _CONFIG).plan(["anna", "ben"])
    whole = path.read_bytes()
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(json.loads(whole))), nested()))
    for content in (
        data.draw(damaged(whole)),
        json.dumps(json.loads(whole) | changes).encode(),
        json.dumps(data.draw(nested())).encode(),
    ):
        path.write_bytes(content)
        try:
            ledger = PrivacyLedger(path, _CONFIG)
        except FedspkError as error:
            assert str(error).startswith(str(path))
            assert path.read_bytes() == content
        else:
            assert ledger.epsilon >= 0
            assert "epsilon" in ledger.statement()


@pytest.mark.parametrize("change", [{"noise_multiplier": 4.0}, {"epsilon": 9.0}, {"delta": 1e-5}])
def test_the_ledger_of_another_noise_or_budget_is_refused(tmp_path, change):
    path = tmp_path / "ledger.json"
    PrivacyLedger(path, _CONFIG).plan(["anna"])
    with pytest.raises(FedspkError, match="another noise or budget"):
        PrivacyLedger(path, _CONFIG.model_copy(update=change))


def test_a_ledger_that_cannot_be_written_lets_no_sum_begin(tmp_path):
    ledger = PrivacyLedger(tmp_path / "folder" / "ledger.json", _CONFIG)
    (tmp_path / "folder").write_text("in the way")
    with pytest.raises(FedspkError, match="cannot be written"):
        ledger.plan(["anna"])
    assert ledger.epsilon == 0


def test_the_file_is_readable_json_for_its_owner_only(tmp_path):
    path = tmp_path / "ledger.json"
    PrivacyLedger(path, _CONFIG).plan(["ben", "anna"])
    assert json.loads(path.read_text())["sums"] == {"anna": 1, "ben": 1}
    assert path.stat().st_mode & 0o077 == 0


def test_the_statement_names_epsilon_delta_sums_and_the_trust(tmp_path):
    ledger = PrivacyLedger(tmp_path / "ledger.json", _CONFIG)
    ledger.plan(["anna"])
    ledger.plan(["anna", "ben"])
    statement = ledger.statement()
    for words in (
        f"epsilon {ledger.epsilon:.3g} of 8 at delta 0.001",
        "at most 2 sums a device",
        "without credit for sampling",
        "aggregator included",
        "corrupt_fraction",
    ):
        assert words in statement
