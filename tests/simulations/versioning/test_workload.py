"""When requests come, from whom, and how long they are."""

from __future__ import annotations

import numpy as np
import pytest

from fedspk.errors import FedspkError
from simulations.versioning.config import Arrivals, Audio, UserRates, VersioningConfig
from simulations.versioning.workload import draw_arrivals, draw_users, draw_workload


def test_regular_requests_come_at_every_interval():
    config = VersioningConfig(arrivals=Arrivals(kind="regular"))
    assert draw_arrivals(config, 0).tolist() == [10.0 * i for i in range(1080)]


@pytest.mark.parametrize("kind", ["poisson", "diurnal"])
def test_random_requests_come_at_the_mean_interval(kind):
    config = VersioningConfig(hours=240, arrivals=Arrivals(kind=kind))
    sent = draw_arrivals(config, 0)
    assert (np.diff(sent) >= 0).all() and sent[0] >= 0 and sent[-1] < config.duration_s
    assert len(sent) == pytest.approx(86_400, rel=0.015)


def test_a_diurnal_load_swings_by_as_much_as_asked():
    config = VersioningConfig(hours=24, interval=0.5, arrivals=Arrivals(kind="diurnal", swing=0.8))
    quarters, _ = np.histogram(draw_arrivals(config, 0), bins=24)
    assert quarters[5:7].mean() / quarters[17:19].mean() == pytest.approx(1.8 / 0.2, rel=0.15)


@pytest.mark.parametrize(
    ("rates", "shares"),
    [
        (UserRates(kind="exponential", decay=0.5), [4 / 7, 2 / 7, 1 / 7]),
        (UserRates(kind="zipf"), [6 / 11, 3 / 11, 2 / 11]),
        (UserRates(kind="linear"), [1 / 6, 2 / 6, 3 / 6]),
        (UserRates(kind="uniform"), [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_users_speak_as_often_as_their_weight_says(rates, shares):
    users = draw_users(VersioningConfig(users=3, user_rates=rates), 0, 100_000)
    assert np.bincount(users) / 100_000 == pytest.approx(shares, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "deviation"),
    [("fixed", 0.0), ("lognormal", 1.2), ("uniform", 1.2), ("exponential", 4.0)],
)
def test_audio_has_the_mean_and_spread_asked_for(kind, deviation):
    audio = Audio(kind=kind, seconds=4.0, spread=0.3)
    drawn = draw_workload(VersioningConfig(interval=0.2, audio=audio), 0).audio_s
    assert drawn.mean() == pytest.approx(4.0, rel=0.02)
    assert drawn.std() == pytest.approx(deviation, rel=0.03)


def test_a_trace_brings_its_users_and_audio(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("0.5,1,3\n2,0,4.5\n99999,0,1\n")
    config = VersioningConfig(users=2, arrivals=Arrivals(kind="trace", trace=file))
    load = draw_workload(config, 0)
    assert load.sent_s.tolist() == [0.5, 2.0]
    assert load.user.tolist() == [1, 0]
    assert load.audio_s.tolist() == [3.0, 4.5]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1\n0\n", "times must ascend from 0"),
        ("1,7\n", "names users outside 0 to 1"),
        ("1,0,-3\n", "must be above 0"),
        ("soon\n", "is not a trace"),
        ("", "is not a trace"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_broken_trace_is_one_sentence(tmp_path, text, fault):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    config = VersioningConfig(users=2, arrivals=Arrivals(kind="trace", trace=file))
    with pytest.raises(FedspkError, match=fault):
        draw_workload(config, 0)


def test_a_run_without_requests_is_refused():
    with pytest.raises(FedspkError, match="there is not one request"):
        draw_workload(VersioningConfig(hours=1e-6), 0)
