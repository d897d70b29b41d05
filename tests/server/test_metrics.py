"""What Prometheus is told."""

from __future__ import annotations

from main_server import SigningDevice, a_report, bearer, make_service, serving
from prometheus_client.parser import text_string_to_metric_families

from fedspk.api import API
from server.repository import Repository

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Samples:
    """Return values by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_requests_fleet_channels_and_expiry_are_told(repository: Repository) -> None:
    service = make_service(repository)
    device = SigningDevice(1)
    service.registry.register(device.registration(service.registry.invite("kitchen").token), 1)
    service.registry.report(device.id, a_report(state="updating"), 2)
    service.registry.register(
        SigningDevice(2).registration(service.registry.invite("hall").token), 1
    )
    operator = bearer(service.registry.add_operator("ann", "operator"))
    with serving(service) as client:
        for path in (f"{API}/devices/{device.id}", f"{API}/devices/{'0' * 32}", "/no/such/page"):
            client.get(path, headers=operator)
        canary = {"version": 1, "channel": "canary"}
        client.post(f"{API}/promotions", json=canary, headers=operator)
        client.request("PROPFIND", "/coffee")
        client.get("/metadata/timestamp.json")
        samples = read(client.get("/metrics", headers=operator).text)

    def requests(method: str, route: str, status: str) -> float:
        return value(samples, "fedspk_requests_total", method=method, route=route, status=status)

    assert requests("GET", f"{API}/devices/{{device}}", "200") == 1
    assert requests("GET", f"{API}/devices/{{device}}", "404") == 1
    assert requests("GET", "other", "404") == 1
    assert requests("other", "other", "404") == 1
    assert value(samples, "fedspk_devices", version="1", state="updating") == 1
    assert value(samples, "fedspk_devices", version="1", state="serving") == 0
    assert value(samples, "fedspk_devices_unreported") == 1
    assert value(samples, "fedspk_channel_version", channel="canary") == 1
    assert value(samples, "fedspk_publish_seconds_count", action="promote") == 1
    assert 0 < value(samples, "fedspk_metadata_expiry_seconds", role="timestamp") <= 3 * 86400
    routes = {dict(labels).get("route", "") for _, labels in samples}
    assert not any(device.id in route for route in routes)
    service.registry.close()
