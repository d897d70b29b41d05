"""What Prometheus may ask: requests, publications, and how fleet and metadata are.

| metric                         | labels                | what                                   |
|--------------------------------|-----------------------|----------------------------------------|
| fedspk_requests_total          | method, route, status | answers                                |
| fedspk_request_seconds         | route                 | how long they took, as a histogram     |
| fedspk_publish_seconds         | action                | how long releases took, as a histogram |
| fedspk_devices                 | version, state        | registered devices by what they report |
| fedspk_devices_unreported      |                       | registered devices that never reported |
| fedspk_channel_version         | channel               | what the channel names                 |
| fedspk_metadata_expiry_seconds | role                  | until devices refuse                   |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from server.service import Service

_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE"}
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one app."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fedspk_requests", "Answers.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "fedspk_request_seconds",
            "How long answers took.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._publishing = Histogram(
            "fedspk_publish_seconds",
            "How long releases took.",
            ["action"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_Present(service))

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        known = method if method in _METHODS else "other"  # clients must not make labels
        self._requests.labels(known, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    @contextmanager
    def publishing(self, action: str) -> Iterator[None]:
        """Measure a release in the block, if it succeeds."""
        start = perf_counter()
        yield
        self._publishing.labels(action).observe(perf_counter() - start)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format.

        Raises:
            FedspkError: the repository or the database cannot be read.
        """
        return generate_latest(self._registry)


class _Present(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """Return nothing: the registry need not ask the database to know the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        view, fleet = self._service.view(), self._service.registry.fleet()
        devices = GaugeMetricFamily(
            "fedspk_devices",
            "Registered devices by what they report.",
            labels=["version", "state"],
        )
        for version, counts in [*fleet.versions.items(), ("file", fleet.from_file)]:
            for state, count in counts.model_dump().items():
                devices.add_metric([str(version), state], count)
        yield devices
        yield GaugeMetricFamily(
            "fedspk_devices_unreported",
            "Registered devices that never reported.",
            value=fleet.unreported,
        )
        channels = GaugeMetricFamily(
            "fedspk_channel_version", "What the channel names.", labels=["channel"]
        )
        for name, channel in view.channels.items():
            channels.add_metric([name], channel.version)
        yield channels
        expiry = GaugeMetricFamily(
            "fedspk_metadata_expiry_seconds", "Until devices refuse.", labels=["role"]
        )
        now = self._service.clock()
        for role, metadata in view.state.roles().items():
            expiry.add_metric([role], (metadata.signed.expires - now).total_seconds())
        yield expiry
