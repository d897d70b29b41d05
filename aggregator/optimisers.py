"""Server optimisers: how the weighted mean of the devices' deltas moves the model.

All compute in float64 and keep their state in float32, as the checkpoint does, so that a resumed
run gives the same bits. Notation of Reddi et al.: x the model, D the mean delta, t the round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedspk.rounds import RunConfig

Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]


class ServerOptimiser(ABC):
    """One step of the server: model (n,) float32 and mean delta (n,) float64 to model float32."""

    def __init__(self, eta: float) -> None:
        self.eta = eta
        self.state: dict[str, Float32Array] = {}

    @abstractmethod
    def step(self, model: Float32Array, mean_delta: Float64Array) -> Float32Array:
        """Return the next model; neither argument changes."""

    def _moved(self, model: Float32Array, move: Float64Array) -> Float32Array:
        return (model + self.eta * move).astype(np.float32)

    def _moment(self, name: str, size: int) -> Float64Array:
        stored = self.state.get(name)
        return np.zeros(size) if stored is None else stored.astype(np.float64)


class FedAvg(ServerOptimiser):
    """x <- x + eta D.

    McMahan et al. 2017, Algorithm 1, for eta = 1; Woubie and Bäckström 2021, Algorithm 1, for
    any eta.
    """

    def step(self, model: Float32Array, mean_delta: Float64Array) -> Float32Array:
        return self._moved(model, mean_delta)


class FedAvgM(ServerOptimiser):
    """v <- beta v + D; x <- x + eta v.

    Hsu, Qi and Brown 2019, section 4.3 (their gradient is -D).
    """

    def __init__(self, eta: float, momentum: float = 0.9) -> None:
        super().__init__(eta)
        self.momentum = momentum

    def step(self, model: Float32Array, mean_delta: Float64Array) -> Float32Array:
        velocity = self.momentum * self._moment("velocity", model.size) + mean_delta
        self.state["velocity"] = velocity.astype(np.float32)
        return self._moved(model, velocity)


class FedAdam(ServerOptimiser):
    """m <- b1 m + (1 - b1) D; v <- b2 v + (1 - b2) D^2; x <- x + eta m / (sqrt(v) + tau).

    Reddi et al. 2021, Algorithm 2 (no bias correction; v starts at tau^2).
    """

    def __init__(
        self, eta: float, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
    ) -> None:
        super().__init__(eta)
        self.beta1, self.beta2, self.tau = beta1, beta2, tau

    def step(self, model: Float32Array, mean_delta: Float64Array) -> Float32Array:
        if "second" not in self.state:
            self.state["second"] = np.full(model.size, self.tau**2, np.float32)
        first = self._moment("first", model.size)
        first = self.beta1 * first + (1 - self.beta1) * mean_delta
        second = self._moment("second", model.size)
        second = self.beta2 * second + (1 - self.beta2) * mean_delta**2
        self.state["first"] = first.astype(np.float32)
        self.state["second"] = second.astype(np.float32)
        return self._moved(model, first / (np.sqrt(second) + self.tau))


def build_optimiser(config: RunConfig, round_number: int = 1) -> ServerOptimiser:
    """Return the server optimiser that a run asks for, at the rate of one of its rounds.

    A rate that falls does so logarithmically, as the devices' does.
    """
    eta = config.server_learning_rate
    if config.final_server_learning_rate is not None:
        progress = (round_number - 1) / max(1, config.rounds - 1)
        eta *= (config.final_server_learning_rate / eta) ** progress
    if config.optimiser == "fedavgm":
        return FedAvgM(eta, config.server_momentum)
    if config.optimiser == "fedadam":
        return FedAdam(eta, config.server_momentum, config.server_beta2, config.server_epsilon)
    return FedAvg(eta)
