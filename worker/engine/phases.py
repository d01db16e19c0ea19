"""Where an execution stands, and how long it stood there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from service.contract.engine import Phase

#: From first to last.
_ORDER: Sequence[Phase] = ("encode", "denoise", "decode")


class Phases:
    """The phase of an execution whose images are in phases of their own.

    Told, on each change, is "encode" until the first image is denoised, "decode" once all images are done with that,
    and "denoise" in between. So it goes on and never back while images take turns; only one that is drawn once more
    takes "decode" back. A moment's time belongs to the earliest phase that anything is in just then: the times of all
    phases add up to that of the execution, however many images share it.
    """

    def __init__(self, tell: Callable[[Phase], None], images: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._told: Phase | None = None
        #: Where each image is, by index; what comes before the images, their prompts, is under None.
        self._under_way: dict[int | None, Phase] = {}
        #: Images that have not come to be decoded.
        self._to_denoise = set(range(images))
        self._since_s = 0.0
        self._spent_s: dict[Phase, float] = {}

    def enter(self, phase: Phase, image: int | None = None) -> None:
        """Note that an image is in this phase now, or all that they have in common."""
        if self._under_way.get(image) == phase:
            return
        self._count()
        self._under_way[image] = phase
        if image is not None:
            (self._to_denoise.discard if phase == "decode" else self._to_denoise.add)(image)
        self._tell_what_it_is(phase)

    def leave(self, image: int | None = None) -> None:
        """Note that an image, or all that they have in common, is done."""
        self._count()
        self._under_way.pop(image, None)

    def tell_again(self) -> None:
        """Tell what was told last, where something else was said since."""
        if self._told is not None:
            self._tell(self._told)

    def spent_s(self, phase: Phase) -> float:
        """Return the seconds that belong to a phase, up to the last `enter` or `leave`."""
        return self._spent_s.get(phase, 0.0)

    def _count(self) -> None:
        now_s = self._clock()
        if self._under_way:
            earliest = min(self._under_way.values(), key=_ORDER.index)
            self._spent_s[earliest] = self.spent_s(earliest) + now_s - self._since_s
        self._since_s = now_s

    def _tell_what_it_is(self, entered: Phase) -> None:
        if not self._to_denoise:
            phase: Phase = "decode"
        elif entered == "encode" and self._told in {None, "encode"}:
            phase = "encode"
        else:
            phase = "denoise"
        if phase != self._told:
            self._told = phase
            self._tell(phase)
