"""What a living engine child says of its models. Pure; whoever shares one holds a lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from service.contract.catalog import ModelCard
from service.contract.engine import ModelCold, ModelFailed, ModelLoaded, ModelLoading

ModelWord = ModelLoading | ModelLoaded | ModelCold | ModelFailed

#: s for which no job is claimed for a model that could not be read again: each would fail here at once, and so more
#: of them would come here than to workers that take their time to draw.
_REST_S = 30.0


class Models:
    """The models of a catalogue, each unheard of, loading, warm, cold or of no use."""

    def __init__(self, ids: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._ids = frozenset(ids)
        self._clock = clock
        self._cards: dict[str, ModelCard] = {}
        self._warm: set[str] = set()
        self._loading: set[str] = set()
        self._failures: dict[str, str] = {}
        #: When each could not be read again.
        self._failed_s: dict[str, float] = {}

    def hear(self, word: ModelWord) -> None:
        """Note what became of a model."""
        match word:
            case ModelLoading():
                self._loading.add(word.model)
            case ModelLoaded():
                self._cards[word.card.id] = word.card
                self._warm.add(word.card.id)
                self._loading.discard(word.card.id)
                self._failed_s.pop(word.card.id, None)
            case ModelCold():
                self._cards[word.card.id] = word.card
                self._warm.discard(word.card.id)
                self._loading.discard(word.card.id)
            case ModelFailed():
                self._loading.discard(word.model)
                # One that was drawn with before may be read again the next time: it is cold.
                if word.model in self._cards:
                    self._failed_s[word.model] = self._clock()
                else:
                    self._failures[word.model] = word.message

    @property
    def settled(self) -> bool:
        """Whether every model is known to be of use or of none."""
        return len(self._cards) + len(self._failures) >= len(self._ids)

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """Every model that can be drawn with, in memory or not."""
        return tuple(self._cards.values())

    @property
    def failures(self) -> dict[str, str]:
        """Models that could not be loaded, and why."""
        return dict(self._failures)

    @property
    def warm(self) -> tuple[str, ...]:
        """Ids of those in memory."""
        return tuple(sorted(self._warm))

    @property
    def loading(self) -> tuple[str, ...]:
        """Ids of those on their way there."""
        return tuple(sorted(self._loading))

    @property
    def cold(self) -> tuple[str, ...]:
        """Ids of those that are read when they are wanted."""
        return tuple(sorted(set(self._cards) - self._warm - self._loading))

    @property
    def claimable(self) -> tuple[str, ...]:
        """Ids of those whose jobs may be claimed.

        While one is being read no cold one is wanted beside it: another worker may have it warm. One that could not be
        read is tried again after a while, by one job or a few.
        """
        if self._loading & set(self._cards):
            return self.warm
        now_s = self._clock()
        rested = (model for model in self.cold if now_s - self._failed_s.get(model, float("-inf")) >= _REST_S)
        return (*self.warm, *rested)
