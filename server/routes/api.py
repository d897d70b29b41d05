"""All routes below `fedspk.api.API`."""

from __future__ import annotations

from fastapi import APIRouter

from fedspk.api import API
from server.routes import devices
from server.routes.messages import Refusal

router = APIRouter(prefix=API, responses={"4XX": {"model": Refusal}, "5XX": {"model": Refusal}})
for part in (devices,):
    router.include_router(part.router)
