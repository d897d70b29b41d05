"""Which strategy to roll out, decided by rules from the numbers alone, and why, in one paragraph.

The rules, in this order:

1. A strategy that scores a voice against a profile of another version is out: the score means
   nothing.
2. A strategy that is down during the rollout, or that fails more requests than the one that fails
   fewest, is out; the difference must be clear over the runs and a thousandth of the requests.
3. A strategy whose backward bounce rate is above one per cent is out.
4. Among the rest the 99th percentile, then the maximal, then the mean latency, then the flops a
   request decide. A strategy stays in the running while it is within 2 % of the best, or while the
   paired difference from the best is not clear.
5. What is still level is ordered by mean latency; the others are named as just as good.

A rule that would leave nobody keeps the least bad and those that are not clearly worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulations.versioning.results import BY_NAME, Json
from simulations.versioning.statistics import Difference, paired_difference

_BOUNCES = "backward_bounce_rate"
_MOST_BOUNCES = 0.01
_MORE_FAILURES = 0.001
_WITHIN = 0.02
_BUSY = 0.8
_FEW_RUNS = 30
_RACE = ("latency_p99_s", "latency_max_s", "latency_mean_s", "gflops_per_request")
_FAULTS = ("cross_version_scorings", "failed_rate", "downtime_s", _BOUNCES)


@dataclass(frozen=True)
class Recommendation:
    """The strategy to use (None if no request was answered), the paragraph, who is out and why.

    level: strategies that no rule could tell from the one to use.
    """

    strategy: str | None
    text: str
    level: tuple[str, ...]
    excluded: dict[str, str]


def recommend(strategies: Mapping[str, Json], *, queues: bool) -> Recommendation:
    """Apply the rules to `strategies` of `results.json`.

    Args:
        strategies: statistics by strategy and metric.
        queues: whether requests wait for one another in what was simulated.
    """
    left = [name for name in strategies if strategies[name]["latency_mean_s"]["mean"] is not None]
    if not left:
        text = "No recommendation: no strategy answered a request in every run."
        return Recommendation(None, text, (), {})
    excluded: dict[str, str] = {}
    for rule in (_of_another_version, _unavailable, _bouncing):
        out = rule(strategies, left)
        if len(out) == len(left):
            least = min(left, key=lambda name: _faults(strategies, name))
            out = {name: why for name, why in out.items() if _is_worse(strategies, least, name)}
        excluded |= out
        left = [name for name in left if name not in out]
    ahead, last = _race(strategies, left)
    best, *level = sorted(ahead, key=lambda name: _mean(strategies, name, "latency_mean_s"))
    sentences = [
        _praise(strategies, best),
        *_last_beaten(strategies, best, last),
        *([f"{_listed(level)} cannot be told from it by these numbers."] if level else []),
        *([_left_out(excluded)] if excluded else []),
        *_caveats(strategies, best, queues),
    ]
    return Recommendation(best, " ".join(sentences), tuple(level), excluded)


def _of_another_version(strategies: Mapping[str, Json], left: Sequence[str]) -> dict[str, str]:
    counts = {name: _mean(strategies, name, "cross_version_scorings") for name in left}
    return {
        name: f"scores {count:.3g} voices a run against a profile of another version"
        for name, count in counts.items()
        if count > 0
    }


def _unavailable(strategies: Mapping[str, Json], left: Sequence[str]) -> dict[str, str]:
    out = {}
    surest = min(left, key=lambda name: _mean(strategies, name, "failed_rate"))
    for name in left:
        more = _gap(strategies, "failed_rate", surest, name)
        if (down := _mean(strategies, name, "downtime_s")) > 0:
            out[name] = f"is down for {down:.0f} s"
        elif more is not None and more.clear and more.mean > _MORE_FAILURES:
            out[name] = f"fails {_show(strategies, name, 'failed_rate')} of the requests"
    return out


def _bouncing(strategies: Mapping[str, Json], left: Sequence[str]) -> dict[str, str]:
    return {
        name: f"bounces back to an older version in {_show(strategies, name, _BOUNCES)} of the "
        "requests"
        for name in left
        if _mean(strategies, name, _BOUNCES) > _MOST_BOUNCES
    }


def _faults(strategies: Mapping[str, Json], name: str) -> tuple[float, ...]:
    return tuple(_mean(strategies, name, metric) for metric in _FAULTS)


def _is_worse(strategies: Mapping[str, Json], least: str, name: str) -> bool:
    gaps = (_gap(strategies, metric, least, name) for metric in _FAULTS)
    return any(gap is not None and gap.clear and gap.mean > 0 for gap in gaps)


def _race(
    strategies: Mapping[str, Json], left: Sequence[str]
) -> tuple[list[str], tuple[str, str] | None]:
    """Return who is level at the end; by which metric the last one fell behind, and who it was."""
    ahead, last = list(left), None
    for metric in _RACE:
        best, *others = sorted(ahead, key=lambda name: _mean(strategies, name, metric))
        behind = [name for name in others if not _keeps_up(strategies, metric, best, name)]
        if behind:
            last = metric, behind[0]
        ahead = [name for name in ahead if name not in behind]
    return ahead, last


def _keeps_up(strategies: Mapping[str, Json], metric: str, best: str, name: str) -> bool:
    most = (1 + _WITHIN) * _mean(strategies, best, metric)
    gap = _gap(strategies, metric, best, name)
    return _mean(strategies, name, metric) <= most or gap is None or not gap.clear


def _praise(strategies: Mapping[str, Json], best: str) -> str:
    low_high = strategies[best]["latency_mean_s"]["ci95"]
    sure = f" (95 % interval {low_high[0]:.4f} to {low_high[1]:.4f})" if low_high else ""
    return (
        f"Use {best}: mean latency {_show(strategies, best, 'latency_mean_s')}{sure}, "
        f"99th percentile {_show(strategies, best, 'latency_p99_s')}, "
        f"maximum {_show(strategies, best, 'latency_max_s')}, "
        f"{_show(strategies, best, 'gflops_per_request')} a request, "
        f"{_show(strategies, best, _BOUNCES)} backward bounces."
    )


def _last_beaten(
    strategies: Mapping[str, Json], best: str, last: tuple[str, str] | None
) -> list[str]:
    if last is None:
        return []
    metric, rival = last
    ours, theirs = (_mean(strategies, name, metric) for name in (best, rival))
    gap = _gap(strategies, metric, rival, best)
    more = f", {100 * (theirs / ours - 1):.0f} % more" if ours > 0 else ""
    runs = f", and higher in {gap.lower_in} of {gap.runs} runs" if gap else ""
    return [
        f"The last to fall behind was {rival}, by its {BY_NAME[metric].label} of "
        f"{_show(strategies, rival, metric)}{more}{runs}."
    ]


def _left_out(excluded: Mapping[str, str]) -> str:
    return f"Left out: {'; '.join(f'{name} {why}' for name, why in excluded.items())}."


def _caveats(strategies: Mapping[str, Json], best: str, queues: bool) -> list[str]:
    runs = len(strategies[best]["latency_mean_s"]["per_run"])
    busy = _mean(strategies, best, "utilisation_peak")
    sentences = []
    if faults := [name for name in _FAULTS if _mean(strategies, best, name) > 0]:
        shown = (f"{_show(strategies, best, name)} {BY_NAME[name].label}" for name in faults)
        sentences.append(f"It is not without fault: {', '.join(shown)}.")
    if queues and busy > _BUSY:
        sentences.append(f"Mind that its busiest worker is {100 * busy:.0f} % busy at its peak.")
    if not queues:
        sentences.append(
            "Nobody queues in these numbers: run the default model with finite concurrency before "
            "deciding."
        )
    if runs < _FEW_RUNS:
        sentences.append(f"With {runs} run{'s' if runs > 1 else ''} this is a first impression.")
    return sentences


def _gap(strategies: Mapping[str, Json], metric: str, a: str, b: str) -> Difference | None:
    return paired_difference(strategies[a][metric]["per_run"], strategies[b][metric]["per_run"])


def _mean(strategies: Mapping[str, Json], name: str, metric: str) -> float:
    """Return a metric's mean; without one, as when nothing ran, zero."""
    return float(strategies[name][metric]["mean"] or 0.0)


def _show(strategies: Mapping[str, Json], name: str, metric: str) -> str:
    return BY_NAME[metric].show(_mean(strategies, name, metric), unit=True)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
