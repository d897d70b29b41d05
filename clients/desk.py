"""What a running device answers to the programs of its machine (`clients.socket_server`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from clients.answers import identification, verification
from clients.quality import Quality, measure
from clients.recogniser import Recogniser
from clients.socket_server import Answer, Request, RequestError, Routes
from clients.vault import UnknownUserError
from clients.versions import NotCalibratedError, Threshold
from fedspk.audio import AudioError, FloatArray, decode_audio

LONGEST_S = 60.0
"""Seconds of sound that a request may bring."""

_FALSE_ACCEPT = 0.01


class Desk:
    """Answers of one recogniser.

    Args:
        recogniser: of the device.
        status: returns what `GET /status` tells beside the model.
    """

    def __init__(self, recogniser: Recogniser, status: Callable[[], dict[str, Any]]) -> None:
        self._recogniser = recogniser
        self._status = status
        # more at a time would take memory and make all of them late
        self._turns = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))

    def routes(self) -> Routes:
        """Return who answers what."""
        return {
            ("POST", "/verify"): self._verify,
            ("POST", "/identify"): self._identify,
            ("GET", "/status"): self._tell_status,
            ("GET", "/healthz"): self._tell_health,
        }

    def _verify(self, request: Request) -> Answer:
        fields = _known(request, {"user", "false_accept", "threshold"})
        if "user" not in fields:
            raise RequestError("say whose voice it should be: ?user=NAME.", HTTPStatus.BAD_REQUEST)
        cut = _cut(fields)
        with self._turns, _refusals():
            audio, quality = _heard(request.body)
            decision = self._recogniser.verify(fields["user"], audio, cut)
        return verification(decision, quality.faults)

    def _identify(self, request: Request) -> Answer:
        cut = _cut(_known(request, {"false_accept", "threshold"}))
        with self._turns, _refusals():
            audio, quality = _heard(request.body)
            decisions = self._recogniser.identify(audio, cut)
        return identification(decisions, quality.faults)

    def _tell_status(self, request: Request) -> Answer:
        _known(request, set())
        return self._status()

    def _tell_health(self, request: Request) -> Answer:
        _known(request, set())
        return {"model": self._recogniser.versions.current.model_hash}


@contextmanager
def _refusals() -> Iterator[None]:
    """Give what the asking program can do something about its status."""
    try:
        yield
    except UnknownUserError as error:
        raise RequestError(str(error), HTTPStatus.NOT_FOUND) from error
    except NotCalibratedError as error:
        raise RequestError(str(error), HTTPStatus.CONFLICT) from error
    except AudioError as error:
        raise RequestError(str(error), HTTPStatus.UNPROCESSABLE_ENTITY) from error


def _known(request: Request, names: set[str]) -> dict[str, str]:
    """Return the query's fields, if each is one of `names`."""
    strange = set(request.fields) - names
    if strange:
        allowed = f"only {', '.join(sorted(names))}" if names else "none"
        raise RequestError(
            f"{min(strange)!r} is no field of this request; there is {allowed}.",
            HTTPStatus.BAD_REQUEST,
        )
    return dict(request.fields)


def _number(fields: dict[str, str], name: str, least: float) -> float | None:
    """Return a field as a number from `least` to 1; None if it is not given."""
    if name not in fields:
        return None
    try:
        value = float(fields[name])
    except ValueError:
        value = float("nan")
    if not least <= value <= 1.0:
        raise RequestError(f"{name} must be a number from {least:g} to 1.", HTTPStatus.BAD_REQUEST)
    return value


def _cut(fields: dict[str, str]) -> Threshold | float:
    """Return what a score is held to: a threshold as given, or a false-accept rate."""
    threshold = _number(fields, "threshold", -1.0)
    rate = _number(fields, "false_accept", 0.0)
    if threshold is None:
        return _FALSE_ACCEPT if rate is None else rate
    if rate is not None:
        raise RequestError("give either false_accept or threshold.", HTTPStatus.BAD_REQUEST)
    return Threshold(threshold, None)


def _heard(body: bytes) -> tuple[FloatArray, Quality]:
    """Return a recording that a model can use, and how good it is."""
    audio = decode_audio(body, LONGEST_S)
    quality = measure(audio)
    if quality.unusable:
        raise RequestError(f"{'; '.join(quality.unusable)}.", HTTPStatus.UNPROCESSABLE_ENTITY)
    return audio, quality
