"""An application that is nothing but its start, which `tests/machine/test_alone.py` serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from ml_trainer_env.server.machine import alone


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    alone.refuse_company()
    yield


app = FastAPI(lifespan=lifespan)
