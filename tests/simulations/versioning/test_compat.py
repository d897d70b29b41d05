"""The compat model gives SpeakerVerSim's results, and what its rules say on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from fedspk.errors import FedspkError
from simulations.versioning.config import Compat, UserRates, VersioningConfig
from simulations.versioning.run import simulate

# SpeakerVerSim 0.1.3 over 400 runs: mean and, where it is known, standard deviation between runs
# of the backward bounces in %, mean and maximal latency in s, Gflops a request, re-enrolments and
# cross-version scorings.
_PUBLISHED = {
    "SSO": (13.218, 1.1268, 1.726, 2.6570, 286.5, 142.8),
    "SSO-sync": (0.349, 0.9948, 1.597, 2.1166, 8.54, 4.52),
    "SSO-hash": (0.0, 0.9913, 1.488, 2.1018, 0.95, 0.0),
    "SSO-mul": (0.0, 0.9914, 1.505, 2.1019, 1.00, 0.0),
    "SD": (0.0, 0.9909, 1.189, 2.1019, 1.00, 0.0),
}
_PUBLISHED_RUNS = 400
_CONFIG = VersioningConfig(model="compat", seed=3)


def _figures(config: VersioningConfig, strategy: str, run: int) -> tuple[float, ...]:
    result = simulate(config, strategy, run)
    return (
        100 * result.backward_bounces / result.requests,
        float(result.latency_s.mean()),
        float(result.latency_s.max()),
        float(result.flops.mean()) / 1e9,
        result.reenrolments_foreground + result.reenrolments_background,
        result.cross_version_scorings,
    )


def _agrees(found: np.ndarray, published: float, rounding: float) -> bool:
    """Whether the means of two samples of runs differ by less than 3.5 standard errors."""
    error = found.std(ddof=1) * math.sqrt(1 / len(found) + 1 / _PUBLISHED_RUNS)
    return abs(found.mean() - published) <= 3.5 * error + rounding


def _check(strategy: str, runs: int) -> None:
    found = np.array([_figures(_CONFIG, strategy, run) for run in range(runs)])
    for column, published in enumerate(_PUBLISHED[strategy]):
        digits = len(str(published).partition(".")[2])
        assert _agrees(found[:, column], published, 0.5 * 10**-digits), (column, published)


@pytest.mark.parametrize("strategy", _PUBLISHED)
def test_sixty_runs_agree_with_speakerversim(strategy):
    _check(strategy, 60)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", _PUBLISHED)
def test_four_hundred_runs_agree_with_speakerversim(strategy):
    _check(strategy, 400)


@pytest.mark.parametrize(("interval", "published"), [(60.0, 0.015), (3600.0, 4.066)])
def test_bounces_follow_the_sync_interval_as_in_speakerversim(interval, published):
    config = _CONFIG.model_copy(update={"sync_interval": interval})
    found = np.array([_figures(config, "SSO-sync", run)[0] for run in range(120)])
    assert _agrees(found, published, 0.0005)


@pytest.mark.parametrize(("workers", "share"), [(10, 0.1350), (100, 0.1485), (500, 0.1497)])
def test_bounces_of_sso_are_those_of_the_formula(workers, share):
    config = VersioningConfig(model="compat", workers=workers, groups=1)
    runs = [simulate(config, "SSO", run) for run in range(100)]
    found = np.array([run.backward_bounces / run.requests for run in runs])
    a = config.hours
    formula = (1 - 1 / workers) * ((1 - math.exp(-a)) - (1 - math.exp(-2 * a)) / 2) / a
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert formula == pytest.approx(share, abs=0.0006)  # the share counts 10 s between requests
    assert abs(found.mean() - share) < 3.5 * error


def _expected_maximum(mean: float, deviation: float, count: int) -> float:
    """Return the mean of the largest of `count` independent Gaussian numbers."""
    z = np.linspace(-8.0, 8.0, 4001)
    return float(mean + deviation * (8.0 - np.trapezoid(ndtr(z) ** count, z)))


@pytest.mark.parametrize(
    ("strategy", "maximum"),
    [("SSO", 1.728), ("SSO-hash", 1.488), ("SSO-mul", 1.503), ("SD", 1.189)],
)
def test_maximal_latencies_are_those_of_extreme_values(strategy, maximum):
    results = [simulate(_CONFIG, strategy, run) for run in range(120)]
    legs, inference = 2 * 0.0244**2, 0.05**2
    plain = _expected_maximum(0.9909, math.sqrt(legs + inference), 1080)
    expected, found = [], []
    for result in results:
        renewed = result.reenrolments_foreground
        slow = _expected_maximum(1.5033, math.sqrt(legs + 2 * inference), renewed)
        expected.append(slow if renewed else plain)
        found.append(result.latency_s.max())
    error = np.std(np.subtract(found, expected), ddof=1) / math.sqrt(len(results))
    assert abs(np.mean(found) - np.mean(expected)) < 3.5 * error
    spread = np.std(expected, ddof=1) / math.sqrt(len(results))
    assert abs(np.mean(expected) - maximum) < 3.5 * spread + 0.001


def test_without_noise_a_request_takes_the_sum_of_its_steps():
    config = VersioningConfig(model="compat", compat=Compat(noise=0.0))
    latency = simulate(config, "SSO", 0).latency_s
    assert sorted({round(float(seconds), 9) for seconds in latency}) == [0.9909, 1.5033]


def test_all_users_share_one_list_of_profiles():
    config = VersioningConfig(model="compat", users=50, user_rates=UserRates(kind="uniform"))
    for strategy in ("SSO-mul", "SD"):
        result = simulate(config, strategy, 0)
        assert result.reenrolments_foreground + result.reenrolments_background == 1
    assert simulate(config, "SSO-hash", 0).reenrolments_foreground > 10


def test_an_empty_candidate_list_takes_the_last_worker():
    # Nobody is ever known to be updated, and everybody soon is: only the last worker serves.
    config = VersioningConfig(
        model="compat", sync_interval=1e6, rollout={"mean_s": 1e-6}, compat=Compat(noise=0.0)
    )
    share = simulate(config, "SSO-sync", 0).worker_requests
    assert share[-1] == share.sum()


def test_requests_that_are_not_answered_by_the_end_do_not_count():
    config = VersioningConfig(model="compat", interval=0.1, hours=0.1)
    result = simulate(config, "SD", 0)
    assert 3585 < result.requests < 3595
    assert np.isfinite(result.latency_s).all()


def test_a_strategy_that_speakerversim_lacks_is_refused():
    with pytest.raises(FedspkError, match=r"^strategy SD-group: the compat model has only"):
        simulate(_CONFIG, "SD-group", 0)
