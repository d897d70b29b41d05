"""The API and the server's own state over HTTP; each module has a router over a `Service`."""

from __future__ import annotations

from server.routes import devices, health, releases, versions

ROUTERS = (health.router, versions.router, releases.router, devices.router)
