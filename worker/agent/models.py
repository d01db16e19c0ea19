"""What a living engine child says of its models. Pure; whoever shares one holds a lock."""

from __future__ import annotations

from collections.abc import Iterable

from service.contract.catalog import ModelCard
from service.contract.engine import ModelCold, ModelFailed, ModelLoaded, ModelLoading

ModelWord = ModelLoading | ModelLoaded | ModelCold | ModelFailed


class Models:
    """The models of a catalogue, each unheard of, loading, warm, cold or of no use."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = frozenset(ids)
        self._cards: dict[str, ModelCard] = {}
        self._warm: set[str] = set()
        self._loading: set[str] = set()
        self._failures: dict[str, str] = {}

    def hear(self, word: ModelWord) -> None:
        """Note what became of a model."""
        match word:
            case ModelLoading():
                self._loading.add(word.model)
            case ModelLoaded():
                self._cards[word.card.id] = word.card
                self._warm.add(word.card.id)
                self._loading.discard(word.card.id)
            case ModelCold():
                self._cards[word.card.id] = word.card
                self._warm.discard(word.card.id)
                self._loading.discard(word.card.id)
            case ModelFailed():
                self._loading.discard(word.model)
                # One that was drawn with before may be read again the next time: it is cold.
                if word.model not in self._cards:
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

        While one is being read no cold one is wanted beside it: another worker may have it warm.
        """
        return self.warm if self._loading & set(self._cards) else (*self.warm, *self.cold)
