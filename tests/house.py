"""A residency with real tiny models, whose turns a test takes into its own hands."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.contract.catalog import CatalogEntry
from service.contract.engine import ModelCold, ModelFailed, ModelLoaded, ModelLoading
from tests.sums import batch_of
from worker.engine.background import Background
from worker.engine.residency import Residency
from worker.engine.shelf import Shelf
from worker.engine.strands import Strand
from worker.pipelines.loading import LoadedModel

_DEADLINE_S = 60.0


class House:
    """Runs a batch's ticks, and what a background thread hands back in between."""

    def __init__(self, *, budget_bytes: int, shelf_bytes: int = 0) -> None:
        self._handed: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.batch = batch_of()
        self.words: list[str] = []
        self.ends: dict[str, Any] = {}
        self.residency = Residency(
            self.batch.hub,
            Background(self._handed.put),
            Shelf(shelf_bytes),
            budget_bytes=budget_bytes,
            tell=self._tell,
            lost=self._lost,
        )

    def offer(self, model: str, folder: Path) -> None:
        self.residency.offer(CatalogEntry(id=model, source=str(folder)))

    def ask(self, name: str, model: str, body: Callable[[LoadedModel], Any]) -> Strand:
        """Start a request; what comes of it is in `ends`."""

        def live() -> None:
            try:
                with self.residency.use(model, on_wait=lambda: self.words.append(f"{name} waits")) as loaded:
                    self.words.append(f"{name} has {model}")
                    self.ends[name] = body(loaded)
            except Exception as err:  # noqa: BLE001 - an end like any other
                self.ends[name] = err

        return self.batch.hub.start(live)

    def run(self, until: Callable[[], bool]) -> None:
        """Tick until a condition holds."""
        give_up_s = time.monotonic() + _DEADLINE_S
        while not until():
            self.tick()
            assert time.monotonic() < give_up_s, (self.words, self.ends)

    def tick(self) -> None:
        """Take one turn, after whatever was handed back; wait for that where there is nothing else to do."""
        with contextlib.suppress(queue.Empty):
            self._handed.get(timeout=0 if self.batch.busy else 0.05)()
        self.batch.tick()

    def run_until_ended(self, *names: str) -> None:
        self.run(lambda: all(name in self.ends for name in names))

    def run_until_said(self, *words: str) -> None:
        self.run(lambda: set(words) <= set(self.words))

    def _tell(self, word: ModelLoading | ModelLoaded | ModelCold | ModelFailed) -> None:
        model = word.model if isinstance(word, (ModelLoading, ModelFailed)) else word.card.id
        self.words.append(f"{model} {word.type.removeprefix('model_')}")

    def _lost(self, error: Exception) -> None:
        raise AssertionError("the device was given up") from error
