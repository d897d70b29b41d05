"""The privacy ledger: how often each device was in a noised sum, and what that costs in epsilon.

A sum is written down before it begins. A crash in between counts it though it never ran: the ledger
may say too much, never too little. An aggregator keeps one for all devices; a device that does not
want to rely on it keeps one for itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from fedspk.errors import FedspkError
from fedspk.files import write_bytes
from fedspk.secagg.config import PrivacyConfig
from fedspk.secagg.privacy import NEGLIGIBLE


def spent_epsilon(noise_multiplier: float, sums: int, delta: float) -> float:
    """Return the epsilon, at this delta, of a device that was in so many noised sums.

    Neighbours differ in one device's whole update, present or zero. Every sum counts in full: since
    the server chooses the cohorts, no sampling hides who took part. The Renyi divergence of a
    discrete Gaussian is at most the Gaussian's (Canonne et al. 2020, theorem 4), that of a sum
    of discrete Gaussians at most `NEGLIGIBLE` more (see `plan_noise`).
    """
    from dp_accounting import GaussianDpEvent
    from dp_accounting.rdp import RdpAccountant

    if sums == 0:
        return 0.0
    accountant = RdpAccountant()
    accountant.compose(GaussianDpEvent(noise_multiplier), sums)
    return float(accountant.get_epsilon(delta)) + sums * NEGLIGIBLE


class PrivacyLedger:
    """The sums that each device was planned for, in a file of its own, against a budget.

    Args:
        path: the file; it is made with the first sum. It belongs to one noise and one budget.
        config: the noise and the budget.

    Raises:
        FedspkError: the file is broken or belongs to another noise or budget.
    """

    def __init__(self, path: Path, config: PrivacyConfig) -> None:
        self._path = Path(path)
        self._config = config
        self._sums = self._read()

    @property
    def epsilon(self) -> float:
        """The epsilon of the device that was in the most sums."""
        return self._epsilon(max(self._sums.values(), default=0))

    def plan(self, devices: Iterable[str]) -> None:
        """Write down one more sum for each of these devices; call it before the sum begins.

        Raises:
            FedspkError: a device's budget does not allow it, or the file cannot be written;
                nothing is then written down, and the sum must not run.
        """
        planned = dict(self._sums)
        for device in devices:
            planned[device] = planned.get(device, 0) + 1
        most = max(planned, key=planned.__getitem__, default=None)
        if most is None:
            return
        epsilon = self._epsilon(planned[most])
        if epsilon > self._config.epsilon:
            raise FedspkError(
                f"Sum {planned[most]} of device {most} would bring epsilon to {epsilon:.3g}, over "
                f"the budget of {self._config.epsilon:g}; raise noise_multiplier or end the run."
            )
        self._write(planned)
        self._sums = planned

    def statement(self) -> str:
        """Return what the sums so far guarantee, and under which assumptions, in words."""
        config, most = self._config, max(self._sums.values(), default=0)
        return (
            f"Differential privacy of one device's whole contribution: epsilon {self.epsilon:.3g} "
            f"of {config.epsilon:g} at delta {config.delta:g}, after at most {most} sums a device "
            f"with noise multiplier {config.noise_multiplier:g}, without credit for sampling. It "
            "holds against whoever sees the sums and models, the aggregator included, as long as "
            "the devices run the published program, no more than corrupt_fraction of a cohort are "
            "dishonest, and this ledger is kept. It does not cover validation losses or who took "
            "part."
        )

    def _epsilon(self, sums: int) -> float:
        return spent_epsilon(self._config.noise_multiplier, sums, self._config.delta)

    def _read(self) -> dict[str, int]:
        try:
            content = msgspec.json.decode(self._path.read_bytes(), type=_LedgerFile)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise FedspkError(f"{self._path}: cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise FedspkError(f"{self._path}: is not a privacy ledger ({error}).") from error
        if content.privacy != self._config.model_dump():
            raise FedspkError(
                f"{self._path}: is the privacy ledger of another noise or budget "
                f"({content.privacy}); a run keeps the ones that it began with."
            )
        return content.sums

    def _write(self, sums: dict[str, int]) -> None:
        content = _LedgerFile(1, self._config.model_dump(), dict(sorted(sums.items())))
        data = msgspec.json.format(msgspec.json.encode(content), indent=2)
        write_bytes(self._path, data + b"\n", mode=0o600)


class _LedgerFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    privacy: dict[str, float]
    sums: dict[str, Annotated[int, msgspec.Meta(ge=1)]]
