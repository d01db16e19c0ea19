"""Lines of work that take turns on the engine's one thread, and meet where they want the same thing done.

A strand is a greenlet: ordinary code, a stock diffusers pipeline among it, that may stop in the middle of a call and go
on later. It stops at `share`, with a piece of work that others may want too, at `gather`, until its own branches have
ended, and at `pause`, to let the others have a turn. Outside of any strand all three simply do the work: code that
shares needs no engine around it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import greenlet
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry  # pyright: ignore[reportPrivateUsage]

from service.contract.costs import CallLabel

T = TypeVar("T")


class SharedWork(Protocol):
    """Something that can be done for several strands at once.

    `key` is equal where works may be done together; `rows` is how much of a call's width this one takes; by its `label`
    its cost is kept beyond this process, None = it is not.
    """

    @property
    def key(self) -> Hashable: ...

    @property
    def rows(self) -> int: ...

    @property
    def label(self) -> CallLabel | None: ...

    def alone(self) -> Any:
        """Do it for this strand only: exactly what the strand would have done itself."""
        ...

    def together(self, works: Sequence[Any]) -> list[Any]:
        """Do several works of this key, this one the first of them; return their results in order."""
        ...


class Dropped(BaseException):
    """The strand is no longer wanted. No `Exception`: nothing on its way out may take it for a fault."""


class Strand(greenlet.greenlet):
    """One line of work."""

    def __init__(self, hub: Hub, body: Callable[[], Any], owner: Strand | None = None) -> None:
        """`owner` waits for this strand; what the body of one without raises leaves `Hub.run`."""
        super().__init__(self._live, parent=hub.main)
        #: What it waits for; None while it can go on, or waits for its branches.
        self.work: SharedWork | None = None
        self.result: Any = None
        self.raised: BaseException | None = None
        #: Its part of the device's time so far, that of its branches included, s.
        self.spent_s = 0.0
        self.hub = hub
        self._body = body
        self._owner = owner
        self._branches: list[Strand] = []

    def _live(self) -> None:
        """Run the body; what it raises is kept until whoever waits for this strand has been told."""
        try:
            self.result = self._body()
        except BaseException as err:
            if self._owner is None:
                raise
            self.raised = err
        if self._owner is not None:
            self._owner.branch_ended()
        # Its traceback refers to this very strand, and would keep the tensors of all its frames.
        self.raised = None

    def share(self, work: SharedWork) -> Any:
        """Wait until the work is done; return its result or raise its error."""
        self.hub.check_thread_state()
        self.work = work
        self.hub.parked(self, work)
        return self.hub.main.switch()

    def suspend(self) -> None:
        """Wait until somebody wakes or stops this strand."""
        self.hub.check_thread_state()
        self.hub.main.switch()

    def pause(self) -> None:
        """Wait until every other strand that can go on has had its turn."""
        self.hub.check_thread_state()
        self.hub.wake_later(self)
        self.hub.main.switch()

    def gather(self, bodies: Sequence[Callable[[], T]]) -> list[T]:
        """Wait until every body has ended as a strand of its own, or one has failed."""
        self.hub.check_thread_state()
        self._branches = [Strand(self.hub, body, owner=self) for body in bodies]
        for branch in self._branches:
            self.hub.wake(branch)
        self.hub.main.switch()
        branches, self._branches = self._branches, []
        return [branch.result for branch in branches]

    def drop_branches(self) -> None:
        """Stop what this strand gathers; none of it wakes the strand any more."""
        branches, self._branches = self._branches, []
        for branch in branches:
            self.hub.stop(branch, Dropped())

    def charge(self, seconds: float) -> None:
        """Add to the time of this strand and of those that wait for it, however late the time is known."""
        self.spent_s += seconds
        if self._owner is not None:
            self._owner.charge(seconds)

    def branch_ended(self) -> None:
        """Wake this strand with the first error, or when all have ended; what an error leaves over is dropped first."""
        failed = next((branch.raised for branch in self._branches if branch.raised is not None), None)
        if failed is not None:
            self.drop_branches()
            self.hub.wake(self, error=failed)
        elif self._branches and all(branch.dead or branch is greenlet.getcurrent() for branch in self._branches):
            self.hub.wake(self)


class Hub:
    """Runs strands, one at a time, each until it waits for something."""

    def __init__(self, parked: Callable[[Strand, SharedWork], None]) -> None:
        """`parked` is called with a strand and the work that it waits for; `wake` lets it go on."""
        self.main = greenlet.getcurrent()
        self.parked = parked
        self._ready: deque[tuple[Strand, Any, BaseException | None]] = deque()
        self._paused: list[Strand] = []
        self._thread_state = _thread_state()
        #: Strands that want what one may have at a time, by what it is: the first has it (`one_at_a_time`).
        self.lines: dict[Hashable, deque[Strand]] = {}

    def start(self, body: Callable[[], None]) -> Strand:
        """Return a new strand that begins at the next `run`. What its body raises, `run` raises."""
        strand = Strand(self, body)
        self.wake(strand)
        return strand

    def wake(self, strand: Strand, value: Any = None, error: BaseException | None = None) -> None:
        """Let a strand go on at the next `run`, with the result of what it waits for or with an error."""
        strand.work = None
        self._ready.append((strand, value, error))

    def wake_later(self, strand: Strand) -> None:
        """Let a strand go on when the next turn begins: after `end_pauses`."""
        self._paused.append(strand)

    def end_pauses(self) -> None:
        """Begin a new turn for those that paused."""
        paused, self._paused = self._paused, []
        for strand in paused:
            self.wake(strand)

    def stop(self, strand: Strand, error: BaseException) -> None:
        """Raise the error in a strand where it waits, once its branches have been dropped.

        One that has ended, or is running, is left alone; one that has not begun never will.
        """
        if not strand.dead and strand is not greenlet.getcurrent():
            strand.drop_branches()
            self._ready = deque(entry for entry in self._ready if entry[0] is not strand)
            self._paused = [paused for paused in self._paused if paused is not strand]
            self.wake(strand, error=error)

    def run(self) -> None:
        """Run every strand that can go on until none can."""
        while self._ready:
            strand, value, error = self._ready.popleft()
            if strand.dead:
                continue
            if not strand:  # not begun
                strand.switch() if error is None else strand.throw(greenlet.GreenletExit)
            elif error is None:
                strand.switch(value)
            else:
                strand.throw(error)

    @property
    def has_ready(self) -> bool:
        """Whether a strand could go on, now or when the next turn begins."""
        return bool(self._ready or self._paused)

    def check_thread_state(self) -> None:
        """Raise `RuntimeError` where a strand would stop inside of a setting of its own that others would inherit.

        Greenlets share their thread's state: gradients, inference mode and autocast switched on by one would be on for
        whichever runs next.
        """
        found = _thread_state()
        if found != self._thread_state:
            raise RuntimeError(f"a strand may not wait with torch at {found}; the engine is at {self._thread_state}")


def share(work: SharedWork) -> Any:
    """Return the result of the work, done together with that of other strands where there are any."""
    strand = greenlet.getcurrent()
    return strand.share(work) if isinstance(strand, Strand) else work.alone()


def gather(bodies: Sequence[Callable[[], T]]) -> list[T]:
    """Return the results of the bodies, which take turns; the first error of any ends them all and is raised."""
    strand = greenlet.getcurrent()
    if isinstance(strand, Strand) and len(bodies) > 1:
        return strand.gather(bodies)
    return [body() for body in bodies]


def pause() -> None:
    """Let other strands and their calls have a turn before going on."""
    strand = greenlet.getcurrent()
    if isinstance(strand, Strand):
        strand.pause()


def charge(seconds: float) -> None:
    """Add to the time of the strand that runs what it took of the device by itself, outside of any shared work."""
    strand = greenlet.getcurrent()
    if isinstance(strand, Strand):
        strand.charge(seconds)


def _thread_state() -> dict[str, Any]:
    return {
        "grad": torch.is_grad_enabled(),
        "inference_mode": torch.is_inference_mode_enabled(),
        "autocast_cpu": torch.is_autocast_enabled("cpu"),
        "autocast_cuda": torch.is_autocast_enabled("cuda"),
        # Of the whole process, and set by a context (`attention_backend`), too; diffusers has no other way to ask.
        "attention": str(_AttentionBackendRegistry.get_active_backend()[0]),
    }
