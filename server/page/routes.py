"""The pages' addresses. All but the login and the stylesheet ask who is there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from fedspk.errors import FedspkError
from fedspk.release import Kind
from server.comparison import compare
from server.faults import NotFoundError
from server.page import access
from server.page.catalogue import Catalogue, Chart, attention, facts, scale_of
from server.page.charts import Pages
from server.page.fleet import STANDINGS, Device, bars, standing_of
from server.page.journal import Entry
from server.page.rendering import HEADERS, show, stylesheet
from server.page.rounds import rounds
from server.service import UNAVAILABLE
from server.traffic import told

if TYPE_CHECKING:
    from server.service import Service, View

log = logging.getLogger("fedspk.server")

_ROWS = 50
_NEWEST = 6
"""So many versions stand on the overview."""

Values = dict[str, Any]


def page_routes(service: Service) -> APIRouter:
    """Return the pages of a main server."""
    router = APIRouter(include_in_schema=False)
    views = _Views(service)

    def add(path: str, template: str, view: Callable[[Request], Values]) -> None:
        def page(request: Request) -> Response:
            common: Values = {"path": request.url.path, "now": service.clock()}
            try:
                operator = access.visitor(service.registry, request)
                if operator is None:
                    response = access.ask_to_log_in(request)
                    response.headers.update(HEADERS)
                    return response
                common["operator"] = operator
                return show(template, **common, **view(request))
            except NotFoundError as error:
                return show("error", 404, **common, title="Not found", message=str(error))
            except FedspkError as error:
                return _unavailable(path, common, error)

        router.add_api_route(path, page, methods=["GET", "HEAD"])

    add("/", "overview", views.overview)
    add("/versions", "versions", views.versions)
    add("/versions/{version:int}", "version", lambda request: views.version("model", request))
    add("/generators/{version:int}", "version", lambda request: views.version("gan", request))
    add("/rounds", "rounds", views.rounds)
    add("/devices", "devices", views.devices)
    add("/devices/{device}", "device", views.device)
    add("/audit", "audit", views.audit)
    router.add_api_route("/page.css", stylesheet, methods=["GET"])

    @router.get("/login")
    def login(next: str = "/") -> Response:
        return show("login", after=access.page_after_login(next), problem="")

    @router.post("/login")
    async def check_token(request: Request) -> Response:
        form = await access.read_form(request)
        after = access.page_after_login(form.get("next", "/"))

        def answer() -> Response:
            operator = service.registry.operator(form.get("token", "").strip())
            if operator is None:
                problem = "No operator has this token."
            elif operator.role == "aggregator":
                problem = "An aggregator's token is not for these pages."
            else:
                return access.log_in(service.registry, operator, request, after)
            return show("login", 401, after=after, problem=problem)

        return await answered("/login", answer)

    @router.post("/logout")
    async def leave(request: Request) -> Response:
        await access.read_form(request)
        return await answered("/logout", lambda: access.log_out(service.registry, request))

    async def answered(path: str, answer: Callable[[], Response]) -> Response:
        try:
            response = await run_in_threadpool(answer)
        except FedspkError as error:
            response = _unavailable(path, {"path": path, "now": service.clock()}, error)
        response.headers.update(HEADERS)
        return response

    return router


class _Views:
    """What stands on each page.

    Raises (all methods):
        NotFoundError: there is no such version or device.
        FedspkError: repository or registry cannot be read.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._last: tuple[View, Catalogue] | None = None

    def overview(self, _: Request) -> Values:
        catalogue = self._catalogue()
        fleet = self._service.registry.fleet()
        found = bars(fleet, catalogue)
        expiries = catalogue.metadata(self._service.clock())
        newest = list(catalogue.models.values())[:_NEWEST]
        return {
            "catalogue": catalogue,
            "attention": attention(catalogue, sum(bar.counts.failed for bar in found), expiries),
            "chart": Chart.of(catalogue),
            "fleet": fleet,
            "bars": found,
            "most": max([bar.total for bar in found], default=0),
            "newest": newest,
            "scale": _scale(newest),
            "expiries": expiries,
        }

    def versions(self, request: Request) -> Values:
        catalogue = self._catalogue()
        models = list(catalogue.models.values())
        pages = _pages(request, len(models))
        shown = models[pages.first : pages.last]
        return {
            "catalogue": catalogue,
            "models": shown,
            "scale": _scale(shown),
            "chart": Chart.of(catalogue),
            "pages": pages,
        }

    def version(self, kind: Kind, request: Request) -> Values:
        catalogue = self._catalogue()
        known = catalogue.manifests(kind)
        manifest = known.get(request.path_params["version"])
        if manifest is None:
            raise NotFoundError(f"There is no version {request.path_params['version']}.")
        parent = known.get(manifest.parent.version) if manifest.parent else None
        fleet = self._service.registry.fleet()
        uses = [bar for bar in bars(fleet, catalogue) if bar.version == manifest.version]
        return {
            "catalogue": catalogue,
            "manifest": manifest,
            "parent": parent,
            "comparison": compare(parent, manifest) if parent else None,
            "facts": facts(manifest),
            "scale": _scale([each for each in (manifest, parent) if each]),
            "use": uses[0] if uses and kind == "model" else None,
            "older": max((n for n in known if n < manifest.version), default=None),
            "newer": min((n for n in known if n > manifest.version), default=None),
        }

    def rounds(self, request: Request) -> Values:
        found = rounds(self._catalogue(), self._service.repository.audit.entries())
        pages = _pages(request, len(found))
        shown = found[pages.first : pages.last]
        return {"rounds": shown, "newest": found[0] if found else None, "pages": pages}

    def devices(self, request: Request) -> Values:
        catalogue, now = self._catalogue(), self._service.clock()
        query = request.query_params
        chosen = {name: query.get(name, "") for name in ("q", "state", "version")}
        registry, wanted = self._service.registry, chosen["q"].strip().casefold()
        known = registry.outlines()
        standings = [standing_of(each, catalogue, now) for each in known]
        counts = Counter(standings)
        found = [
            each.row
            for each, standing in zip(known, standings, strict=True)
            if (not wanted or wanted in f"{each.name}\n{each.device}".casefold())
            and chosen["state"] in ("", standing)
            and chosen["version"] in ("", str(each.version))
        ]
        pages = _pages(request, len(found))
        shown = registry.records(found[pages.first : pages.last])
        return {
            "devices": [Device.of(each, catalogue, now) for each in shown],
            "chosen": chosen,
            "counts": counts,
            "standings": STANDINGS,
            "versions": sorted({each.version for each in known if each.version}, reverse=True),
            "pages": pages,
        }

    def device(self, request: Request) -> Values:
        catalogue = self._catalogue()
        record = self._service.registry.device(request.path_params["device"])
        return {
            "device": Device.of(record, catalogue, self._service.clock()),
            "catalogue": catalogue,
            "standings": STANDINGS,
        }

    def audit(self, request: Request) -> Values:
        before = request.query_params.get("before", "")
        start = int(before) if before.isascii() and before.isdigit() and len(before) < 16 else None
        lines, older = self._service.repository.audit.page(_ROWS, start)
        return {"entries": [Entry.of(line) for line in lines], "older": older, "paged": start}

    def _catalogue(self) -> Catalogue:
        view, last = self._service.view(), self._last
        if last is None or last[0] is not view:
            self._last = last = view, Catalogue.of(view)
        return last[1]


def _unavailable(path: str, common: Values, error: FedspkError) -> Response:
    log.error(told("failed", route=path, reason=error))
    message = f"{UNAVAILABLE[0].upper()}{UNAVAILABLE[1:]}"
    return show("error", 503, **common, title="Not available", message=message)


def _pages(request: Request, total: int) -> Pages:
    return Pages.cut(total, request.query_params.get("page", "1"), _ROWS)


def _scale(manifests: list[Any]) -> Any:
    return scale_of([each.evaluation for each in manifests if each.evaluation])
