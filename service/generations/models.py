"""The models that can be asked for, as workers showed them; read from Redis at most once a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.contract.catalog import ModelCard
from service.contract.errors import NotFound
from service.generations.field_errors import nearest
from service.jobs.async_store import AsyncJobStore
from service.jobs.commands import RegisteredModel


class ModelDirectory:
    """A short-lived copy of the registered models. Any number of callers cause one read."""

    def __init__(self, store: AsyncJobStore, *, cache_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._cache_s = cache_s
        self._clock = clock
        self._models: list[RegisteredModel] = []
        self._cards: list[ModelCard] = []
        self._until = float("-inf")
        self._reading = asyncio.Lock()

    async def models(self) -> list[RegisteredModel]:
        """Return every model, the default first. Raises `Unavailable`."""
        await self._refresh()
        return self._models

    async def cards(self) -> list[ModelCard]:
        """Return every model's card, the default first. Raises `Unavailable`."""
        if self._until <= self._clock():
            await self._refresh()
        return self._cards

    async def model(self, model_id: str) -> RegisteredModel:
        """Return one model; raises `NotFound`, naming similar ones."""
        models = await self.models()
        for model in models:
            if model.card.id == model_id:
                return model
        close = nearest(model_id, [each.card.id for each in models])
        raise NotFound(f"There is no such model here{close or '.'}")

    async def _refresh(self) -> None:
        async with self._reading:
            if self._until > self._clock():
                return
            models = await self._store.models()
            self._models, self._cards = models, [model.card for model in models]
            self._until = self._clock() + self._cache_s
