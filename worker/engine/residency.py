"""The models of an engine: which are in memory, which are on their way there, and which have to go for them.

    offered ──prepare (background)──▶ cold ──load (a strand, between ticks)──▶ warm ──room needed──▶ cold …

A model is loaded when it is offered, where there is room, and else when a request wants it; the least valuable then
leaves. One that is in use leaves when its last user has ended; those who come meanwhile wait until it is back, so that
a busy model cannot keep another out for good.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import greenlet
import structlog

from service.contract.catalog import CatalogEntry
from service.contract.engine import ModelCold, ModelFailed, ModelLoaded, ModelLoading
from service.contract.errors import FailureCode
from worker.engine.background import Background
from worker.engine.faults import Fault, classify, free_memory, report
from worker.engine.memory import size_bytes
from worker.engine.shelf import Shelf
from worker.engine.strands import Hub, Strand, pause
from worker.engine.worth import Worth, victims
from worker.pipelines.errors import Refusal, UnusableModel
from worker.pipelines.loading import LoadedModel, Prepared, assemble, prepare

log = structlog.get_logger()

Tell = Callable[[ModelLoading | ModelLoaded | ModelCold | ModelFailed], None]


@dataclass(eq=False, slots=True)
class _Waiter:
    strand: Strand
    #: Counted as a user already: it may be stopped before it goes on.
    admitted: bool = False


@dataclass(eq=False, slots=True)
class _Place:
    """One model of the catalogue."""

    entry: CatalogEntry
    prepared: Prepared | None = None
    preparing: bool = False
    model: LoadedModel | None = None
    worth: Worth = field(default_factory=Worth)
    users: int = 0
    #: To be evicted when nobody uses it any more.
    leaving: bool = False
    waiting: list[_Waiter] = field(default_factory=list)


class Residency:
    """Keeps models in memory within a budget. Everything but preparing happens on the engine's thread."""

    def __init__(
        self,
        hub: Hub,
        background: Background,
        shelf: Shelf,
        *,
        budget_bytes: int,
        tell: Tell,
        lost: Callable[[Exception], None],
    ) -> None:
        """`tell` hears what becomes of each model; `lost` hears of an error after which the device is unusable."""
        self._hub = hub
        self._background = background
        self._shelf = shelf
        self._budget_bytes = budget_bytes
        self._tell = tell
        self._lost = lost
        self._places: dict[str, _Place] = {}
        self._queue: deque[_Place] = deque()
        self._loader: Strand | None = None
        #: Whether the loader waits for a user to end.
        self._blocked = False

    def offer(self, entry: CatalogEntry) -> None:
        """Serve a model from now on: prepare it, and load it where there is room."""
        place = self._places.get(entry.id)
        if place is not None and place.entry == entry and place.model is not None:
            self._tell(ModelLoaded(card=place.model.card, seconds=0.0))
            return
        self._places[entry.id] = place = _Place(entry)
        self._tell(ModelLoading(model=entry.id))
        self._prepare(place)

    @contextlib.contextmanager
    def use(self, model_id: str, on_wait: Callable[[], None]) -> Iterator[LoadedModel]:
        """Give a strand the model for as long as the block lasts; `on_wait` is called before it has to wait for it.

        Raises `Refusal` where the model is not served here, or cannot be loaded.
        """
        place = self._places.get(model_id)
        if place is None:
            raise Refusal(FailureCode.MODEL_UNAVAILABLE, f"The model {model_id} is not loaded here.")
        if place.model is None or place.leaving:
            on_wait()
            self._wait_for(place)
        else:
            place.users += 1
        place.worth.used()
        try:
            assert place.model is not None  # noqa: S101 - users keep it from being evicted
            yield place.model
        finally:
            self._release(place)

    # ── those who wait ────────────────────────────────────────────────────────────────────────────────────────────────

    def _wait_for(self, place: _Place) -> None:
        strand = greenlet.getcurrent()
        if not isinstance(strand, Strand):
            msg = "only a strand can wait for a model"
            raise TypeError(msg)
        waiter = _Waiter(strand)
        place.waiting.append(waiter)
        self._want(place)
        try:
            strand.suspend()
        except BaseException:
            if waiter.admitted:
                self._release(place)
            raise
        finally:
            if waiter in place.waiting:
                place.waiting.remove(waiter)

    def _admit(self, place: _Place) -> None:
        place.leaving = False
        waiting, place.waiting = place.waiting, []
        for waiter in waiting:
            waiter.admitted = True
            place.users += 1
            self._hub.wake(waiter.strand)

    def _turn_away(self, place: _Place, refusal: Refusal) -> None:
        waiting, place.waiting = place.waiting, []
        for waiter in waiting:
            self._hub.wake(waiter.strand, error=refusal)

    def _release(self, place: _Place) -> None:
        place.users -= 1
        if place.leaving and not place.users and self._blocked and self._loader is not None:
            self._blocked = False
            self._hub.wake(self._loader)

    # ── preparing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _prepare(self, place: _Place) -> None:
        place.prepared, place.preparing = None, True
        self._background.do(lambda: prepare(place.entry), lambda result: self._prepared(place, result))

    def _prepared(self, place: _Place, result: Prepared | Exception) -> None:
        if self._places.get(place.entry.id) is not place:
            return  # offered anew with another entry
        place.preparing = False
        if isinstance(result, Exception):
            self._failed(place, result)
            return
        place.prepared = result
        if place.model is not None:
            return  # it was being loaded when its files changed: what is drawn with is what was read
        if place.waiting or self._has_room(place):
            self._enqueue(place)
        else:
            log.info("model_left_cold", model=place.entry.id, reason="no room")
            self._tell(ModelCold(card=result.card))

    def _has_room(self, place: _Place) -> bool:
        return not victims(self._warm() + list(self._queue), _needed_bytes(place), self._budget_bytes)

    # ── loading ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _want(self, place: _Place) -> None:
        """Have a model loaded, unless it is on its way already."""
        if place.preparing:
            return
        if place.model is None:
            self._tell(ModelLoading(model=place.entry.id))
            if place.prepared is None or not place.prepared.is_current():
                self._prepare(place)
                return
        if place not in self._queue:
            self._enqueue(place)

    def _enqueue(self, place: _Place) -> None:
        if place.model is None:
            place.worth.size_bytes = _needed_bytes(place)
        self._queue.append(place)
        if self._loader is None:
            self._loader = self._hub.start(self._load_all)

    def _load_all(self) -> None:
        while self._queue:
            place = self._queue[0]
            if place.model is None and place.prepared is None:
                # Its files changed while it waited: it comes again when they are checked.
                self._queue.popleft()
                continue
            try:
                if place.model is None:
                    self._load(place)
                self._admit(place)
            except Exception as err:  # noqa: BLE001 - one model that cannot be loaded must not take the others down
                self._failed(place, err)
            self._queue.popleft()
        self._loader = None

    def _load(self, place: _Place) -> None:
        """Make room, then read; where the device says that the room was not enough, make more."""
        while True:
            self._make_room(place)
            begun_s = time.monotonic()
            try:
                model = self._read(place)
            except (RuntimeError, MemoryError) as err:
                if classify(err) is not Fault.OUT_OF_MEMORY or not self._warm():
                    raise
            else:
                break
            free_memory()
            # So much is known not to fit: somebody has to go for the next try.
            self._budget_bytes = _needed_bytes(place) + sum(each.worth.size_bytes for each in self._warm()) - 1
            log.warning("model_did_not_fit", model=place.entry.id, budget_bytes=self._budget_bytes)
        place.model = model
        place.worth.size_bytes = size_bytes(model)
        place.worth.reload_s = seconds = time.monotonic() - begun_s
        log.info(
            "model_loaded", model=place.entry.id, dtype=model.card.dtype, device=str(model.device), seconds=seconds
        )
        self._tell(ModelLoaded(card=model.card, seconds=seconds))

    def _read(self, place: _Place) -> LoadedModel:
        assert place.prepared is not None  # noqa: S101 - none is queued before
        shelved = self._shelf.take(place.entry.id, place.prepared.card.sha256, between=pause)
        return shelved or assemble(place.prepared, between=pause)

    def _make_room(self, place: _Place) -> None:
        while going := victims(self._warm(), _needed_bytes(place), self._budget_bytes):
            for each in going:
                each.leaving = True
                if not each.users:
                    self._evict(each)
            # Asked for only now: whoever ended while another was evicted has woken nobody.
            left = [each for each in going if each.model is not None]
            if left and all(each.users for each in left):
                self._blocked = True
                strand = greenlet.getcurrent()
                assert isinstance(strand, Strand)  # noqa: S101 - the loader
                strand.suspend()
        for stayed in self._warm():
            if stayed.leaving:  # others that went were enough
                self._admit(stayed)

    def _evict(self, place: _Place) -> None:
        model, place.model, place.leaving = place.model, None, False
        assert model is not None  # noqa: S101 - only warm ones are evicted
        log.info("model_evicted", model=place.entry.id)
        self._tell(ModelCold(card=model.card))
        self._put_away(model)
        del model
        free_memory()
        if place.waiting:
            self._want(place)

    def _put_away(self, model: LoadedModel) -> None:
        """Put a model on the shelf; where the machine has no memory for it either, it is read from its files again."""
        try:
            self._shelf.put(model, between=pause)
        except (RuntimeError, MemoryError) as err:
            if classify(err) is not Fault.OUT_OF_MEMORY:
                raise
            log.warning("model_not_shelved", model=model.card.id, error=type(err).__name__)

    def _failed(self, place: _Place, err: Exception) -> None:
        model_id = place.entry.id
        if isinstance(err, UnusableModel):
            log.warning("model_unusable", model=model_id, reason=str(err))
            message = str(err)
        else:
            report("model_load_failed", err, model=model_id)
            fault = classify(err)
            if fault is Fault.DEVICE:
                self._lost(err)
            reason = "out of memory" if fault is Fault.OUT_OF_MEMORY else type(err).__name__
            message = f"Loading failed: {reason}. The worker's log says more."
        self._tell(ModelFailed(model=model_id, message=message))
        text = f"The model {model_id} could not be loaded; the worker's log says why."
        self._turn_away(place, Refusal(FailureCode.MODEL_UNAVAILABLE, text))

    def _warm(self) -> list[_Place]:
        return [place for place in self._places.values() if place.model is not None]


def _needed_bytes(place: _Place) -> int:
    """Return what a model takes: measured when it was warm before, else as much as its files."""
    return place.worth.size_bytes or (place.prepared.weights_bytes if place.prepared else 0)
