"""A second thread, for what neither needs the device nor touches torch: downloads, checksums, reading files."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Background:
    """Does one thing after another; what comes of each is handed back to the engine's thread."""

    def __init__(self, hand_back: Callable[[Callable[[], None]], None]) -> None:
        """`hand_back` has a function called on the engine's thread, soon."""
        self._hand_back = hand_back
        self._errands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="background", daemon=True).start()

    def do(self, work: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        """Call `work` on the other thread; then `then`, on the engine's, with its result or what it raised."""

        def errand() -> None:
            try:
                result: T | Exception = work()
            except Exception as err:  # noqa: BLE001 - it is the business of whoever wanted the work
                result = err
            self._hand_back(lambda: then(result))

        self._errands.put(errand)

    def _work(self) -> None:
        while True:
            self._errands.get()()
