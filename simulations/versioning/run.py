"""One run of one strategy: from a configuration to what happened."""

from __future__ import annotations

from simulations.versioning.compat import simulate_compat
from simulations.versioning.config import VersioningConfig
from simulations.versioning.devices import simulate_devices
from simulations.versioning.engine import simulate_service
from simulations.versioning.occupancy import BINS
from simulations.versioning.result import RunResult
from simulations.versioning.strategies import STRATEGIES, get_strategy

__all__ = ["BINS", "RunResult", "simulate", "strategy_names"]


def strategy_names() -> tuple[str, ...]:
    """Return the names of all strategies, those of the paper's experiments first."""
    return tuple(STRATEGIES)


def simulate(config: VersioningConfig, strategy: str, run: int) -> RunResult:
    """Simulate one run of a strategy.

    Args:
        config: the configuration.
        strategy: one of `strategy_names()`.
        run: number of the run; all strategies see the same draws in it.

    Raises:
        FedspkError: the strategy is unknown, or the model cannot simulate it.
    """
    chosen = get_strategy(strategy)
    if config.model == "compat":
        return simulate_compat(config, chosen, run)
    if chosen.engine == "device":
        return simulate_devices(config, chosen, run)
    return simulate_service(config, chosen, run)
