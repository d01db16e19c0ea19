"""Ctrl-C and SIGTERM as a request that a command honours between two actions, never in the middle of one.

A KeyboardInterrupt may arise between the start of a process and the line that notes it; that process would be left
behind. Here a signal only sets a mark and ends a wait.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The command was asked to stop."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self._signal_number: int | None = None
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)

    @classmethod
    @contextlib.contextmanager
    def listening(cls) -> Iterator[StopRequest]:
        """Take SIGINT, SIGTERM and SIGHUP over; main thread only. Nested or after another one: a defect.

        A SIGHUP that is ignored stays so: that is what `nohup` is for.
        """
        request = cls()
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set[signal.Signals]()
        earlier = {number: signal.signal(number, request._note) for number in _SIGNALS if number not in ignored}
        try:
            yield request
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
            os.close(request._wake_reader)
            os.close(request._wake_writer)

    def check(self) -> None:
        """Raise Stopped if a stop was asked for."""
        if self._signal_number is not None:
            raise Stopped(self._signal_number)

    def wait(self, seconds: float) -> None:
        """Wait that long, or raise Stopped at once when asked to stop."""
        self.check()
        select.select([self._wake_reader], [], [], seconds)
        self.check()

    def _note(self, number: int, _frame: object) -> None:
        self._signal_number = self._signal_number or number
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_writer, b"!")
