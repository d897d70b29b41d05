"""What differential privacy costs: the noise that a budget needs, against the length of an update.

    python benchmarks/privacy.py [--json FILE]

Computed with dp-accounting; the noise norms are also measured, by encoding updates of zeros and
decoding their sum. "In turn" is what the ledger accounts for: fixed batches, each device in rounds
times share of them, and no credit for sampling.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from dp_accounting import (
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    get_sigma_gaussian,
)
from dp_accounting.rdp import RdpAccountant
from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS
from scipy.optimize import brentq

from fedspk.files import write_json
from fedspk.secagg.config import PrivacyConfig
from fedspk.secagg.discrete_gaussian import DiscreteGaussian
from fedspk.secagg.ledger import spent_epsilon
from fedspk.secagg.parameters import choose_graph, fewest_survivors
from fedspk.secagg.privacy import (
    NoisePlan,
    encode_noised,
    honest_shares,
    plan_noise,
)

CORRUPT = DROPOUT = 0.1
FULL_GRAPH_LIMIT = 200
CLIP = 1.0
SIZES = {"1M": 1_000_000, "10k": 10_000, "512": 512}
MEASURED = 30_000_000  # numbers drawn at most to measure one noise norm
# The lowest orders do not converge when sampling, and never decide.
ORDERS = [order for order in DEFAULT_RDP_ORDERS if order >= 2]


@dataclass(frozen=True)
class Setting:
    """A fleet of `devices`, of which a `share` trains in each of `rounds`."""

    devices: int
    share: float
    rounds: int
    epsilon: float
    delta: float

    @property
    def cohort(self) -> int:
        return round(self.devices * self.share)

    @property
    def sums(self) -> int:
        """In how many sums a device is when the batches take turns."""
        return round(self.rounds * self.share)

    def __str__(self) -> str:
        return f"{self.devices:,} devices, {self.cohort} a round, epsilon {self.epsilon:g}"


SETTINGS = (
    Setting(25, 1.0, 20, 8.0, 1e-3),
    Setting(1000, 0.1, 100, 8.0, 1e-4),
    Setting(10_000, 0.1, 100, 8.0, 1e-5),
    Setting(10_000, 0.1, 100, 2.0, 1e-5),
)


def sampled_epsilon(noise: float, setting: Setting) -> float:
    """Return epsilon if every round drew its devices secretly and independently."""
    accountant = RdpAccountant(ORDERS)
    event = PoissonSampledDpEvent(setting.share, GaussianDpEvent(noise))
    accountant.compose(SelfComposedDpEvent(event, setting.rounds))
    return float(accountant.get_epsilon(setting.delta))


def multipliers(setting: Setting) -> dict[str, float]:
    """Return the noise multipliers that spend the budget, by how it is accounted for."""
    epsilon, delta = setting.epsilon, setting.delta

    def needed(sums: int) -> float:
        return brentq(lambda noise: spent_epsilon(noise, sums, delta) - epsilon, 0.2, 100)

    sampled = (
        brentq(lambda noise: sampled_epsilon(noise, setting) - epsilon, 0.2, 100)
        if setting.share < 1
        else needed(setting.rounds)
    )
    return {
        "sampled": sampled,
        "in turn": needed(setting.sums),
        "in turn, exact": get_sigma_gaussian(epsilon, delta) * math.sqrt(setting.sums),
        "every round": needed(setting.rounds),
        "epsilon if the server chooses": spent_epsilon(sampled, setting.rounds, delta),
    }


def plan(setting: Setting, noise: float, size: int) -> NoisePlan:
    """Return how the devices of a round would noise an update."""
    cohort = setting.cohort
    degree, threshold = choose_graph(
        cohort,
        full_graph_limit=FULL_GRAPH_LIMIT,
        corrupt_fraction=CORRUPT,
        dropout_fraction=DROPOUT,
    )
    survivors = fewest_survivors(cohort, degree, threshold)
    return plan_noise(
        PrivacyConfig(noise_multiplier=noise, epsilon=setting.epsilon, delta=setting.delta),
        size=size,
        clients=cohort,
        honest=honest_shares(cohort, survivors, CORRUPT),
        precision_bits=24,
        norm=CLIP,
    )


def added_norm(setting: Setting, noise: float, size: int) -> float:
    """Return the noise norm of the mean over the clip, as fedspk adds it, when all answer."""
    planned = plan(setting, noise, size)
    return planned.scale / planned.quantiser.levels * math.sqrt(size / setting.cohort)


def measured_norm(setting: Setting, noise: float, size: int) -> float:
    """Return the same from the devices' encodings of nothing."""
    planned = plan(setting, noise, size)
    total = np.zeros(size, planned.quantiser.dtype)
    nothing = np.zeros(size, np.float32)
    for device in range(setting.cohort):
        rounding = device.to_bytes(32, "big")
        total += encode_noised(planned.quantiser, planned.scale, nothing, rounding)
    mean = planned.quantiser.decode(total, setting.cohort).values / setting.cohort
    return float(np.linalg.norm(mean)) / CLIP


def noise_norms(setting: Setting, noises: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return noise norms of the mean over the clip, by the length of an update."""
    norms = {}
    for name, size in SIZES.items():
        noise = noises["in turn"]
        norms[name] = {
            "published": noises["sampled"] * math.sqrt(size) / setting.cohort,
            "added": added_norm(setting, noise, size),
        }
        if size * setting.cohort <= MEASURED:
            norms[name]["measured"] = measured_norm(setting, noise, size)
    return norms


def sampler_seconds() -> float:
    """Return the seconds of CPU that a million draws take."""
    gaussian = DiscreteGaussian(1e6)
    gaussian.draw(1_000_000)
    started = time.process_time()
    gaussian.draw(1_000_000)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = []
    for setting in SETTINGS:
        noises = multipliers(setting)
        report.append((setting, noises, noise_norms(setting, noises)))

    names = list(report[0][1])
    print("| setting |", " | ".join(names), "|")
    print("|---" * (len(names) + 1) + "|")
    for setting, noises, _ in report:
        print(f"| {setting} |", " | ".join(f"{noises[name]:.2f}" for name in names), "|")
    print("\n| setting |", " | ".join(f"{size} published | {size} added" for size in SIZES), "|")
    print("|---" * (2 * len(SIZES) + 1) + "|")
    for setting, _, norms in report:
        cells = (_short(row[kind]) for row in norms.values() for kind in ("published", "added"))
        print(f"| {setting} |", " | ".join(cells), "|")
    ratios = [
        row["measured"] / row["added"]
        for _, _, norms in report
        for row in norms.values()
        if "measured" in row
    ]
    print(f"\nmeasured over computed: {min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} cells")
    print(f"a million draws: {1000 * sampler_seconds():.0f} ms of CPU")
    if arguments.json:
        write_json(
            arguments.json,
            [
                {"setting": asdict(setting), "multipliers": noises, "norms": norms}
                for setting, noises, norms in report
            ],
        )


def _short(norm: float) -> str:
    return f"{norm:.0f}" if norm >= 10 else f"{norm:.2g}"


if __name__ == "__main__":
    main()
