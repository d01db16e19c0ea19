"""Strands whose turns a test takes into its own hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from worker.engine.strands import Hub, SharedWork, Strand, share


class Word:
    """A work whose result tells how it was done."""

    rows = 1
    key = "words"
    label = None

    def __init__(self, text: str) -> None:
        self.text = text

    def alone(self) -> str:
        return f"{self.text} alone"

    def together(self, works: Sequence[Word]) -> list[str]:
        return [f"{work.text} of {len(works)}" for work in works]


class Desk:
    """A hub whose parked strands wait until the test answers them."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Strand, Word]] = []
        self.hub = Hub(parked=self._parked)
        self.ends: list[Any] = []

    def _parked(self, strand: Strand, work: SharedWork) -> None:
        assert isinstance(work, Word)
        self.waiting.append((strand, work))

    def start(self, body: Callable[[], Any]) -> Strand:
        """Begin a strand; what it returns or raises is added to `ends`."""

        def noted() -> None:
            try:
                self.ends.append(body())
            except BaseException as err:  # noqa: BLE001 - an end like any other
                self.ends.append(err)

        strand = self.hub.start(noted)
        self.hub.run()
        return strand

    def words(self) -> list[str]:
        return [work.text for strand, work in self.waiting if strand.work is work]

    def answer(self, *, error: BaseException | None = None, text: str | None = None) -> None:
        """Let one strand go on, the first or the one that waits with a text, with a result or an error."""
        index = next(n for n, (_, work) in enumerate(self.waiting) if text in (None, work.text))
        strand, work = self.waiting.pop(index)
        self.hub.wake(strand, None if error else work.together([work, work])[0], error)
        self.hub.run()


def say(*texts: str) -> str:
    """Share words one after the other; return the last result."""
    return [share(Word(text)) for text in texts][-1]
