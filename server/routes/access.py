"""Who asks: an operator by his token, a device by its signature."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Path, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from fedspk.api import CLOCK_MARGIN, DeviceId, SignedRequest
from server.faults import ForbiddenError, UnauthenticatedError, WrongClockError
from server.metrics import Metrics
from server.records import Operator, Role
from server.service import Service
from server.traffic import UNKNOWN_TOKEN

_bearer = HTTPBearer(
    auto_error=False, scheme_name="operator", description="A token of `server add-operator`."
)
_signature = APIKeyHeader(
    name="Authorization",
    auto_error=False,
    scheme_name="device",
    description="`Fedspk-Device device=..., time=..., signature=...`, see `fedspk.api`.",
)


# These only look something up: as coroutines they need no thread.
async def service_of(request: Request) -> Service:
    """Return what the app serves."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


async def metrics_of(request: Request) -> Metrics:
    """Return where the app counts."""
    metrics = request.app.state.metrics
    assert isinstance(metrics, Metrics)
    return metrics


Serving = Annotated[Service, Depends(service_of)]
Measuring = Annotated[Metrics, Depends(metrics_of)]


class allow:  # noqa: N801  (a dependency reads like a function)
    """A dependency: the operator who asks, if his role is one of `roles`.

    Raises (when called):
        UnauthenticatedError: nobody has this token.
        ForbiddenError: the role is another.
    """

    def __init__(self, *roles: Role) -> None:
        self._roles = roles

    def __call__(
        self,
        request: Request,
        service: Serving,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Operator:
        """Return who asks."""
        if credentials is None:
            raise UnauthenticatedError("an operator's token is needed: Authorization: Bearer.")
        operator = service.registry.operator(credentials.credentials)
        if operator is None:
            raise UnauthenticatedError(UNKNOWN_TOKEN)
        request.state.who = operator.name
        if operator.role not in self._roles:
            raise ForbiddenError(
                f"the role {operator.role} may not do this; it takes {' or '.join(self._roles)}."
            )
        return operator


Reader = Annotated[Operator, Depends(allow("viewer", "operator"))]
Releaser = Annotated[Operator, Depends(allow("operator", "aggregator"))]
Changer = Annotated[Operator, Depends(allow("operator"))]


class Signature:
    """The signature of a request, not believed yet."""

    def __init__(self, request: Request, body: bytes, service: Service, header: str) -> None:
        self._request, self._body, self._clock = request, body, service.clock
        self._signed = SignedRequest.from_header(header)

    def check(self, device: str, public_key: bytes) -> int:
        """Accept a request that the owner of `public_key` signed for `device` just now.

        Returns:
            When, in milliseconds since 1970.

        Raises:
            UnauthenticatedError: he did not.
            WrongClockError: he signed it at another time.
        """
        signed, request = self._signed, self._request
        if signed is None:
            raise UnauthenticatedError("a device's signature is needed; see fedspk.api.")
        if signed.device != device or not signed.verifies(
            public_key, request.method, request.url.path, self._body
        ):
            raise UnauthenticatedError("the request is not signed by this device.")
        now = round(self._clock().timestamp() * 1000)
        if abs(now - signed.time_ms) > CLOCK_MARGIN / timedelta(milliseconds=1):
            raise WrongClockError(
                "the request is signed at another time than the server's; set the device's clock.",
                now,
            )
        return signed.time_ms


async def _signature_of(
    request: Request, service: Serving, header: Annotated[str | None, Depends(_signature)]
) -> Signature:
    return Signature(request, await request.body(), service, header or "")


Signed = Annotated[Signature, Depends(_signature_of)]


def _reporting(device: Annotated[DeviceId, Path()], signature: Signed, service: Serving) -> int:
    return signature.check(device, service.registry.public_key(device))


SignedMs = Annotated[int, Depends(_reporting)]
"""When the registered device of the path signed the request: judged before its body is."""
