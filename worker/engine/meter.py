"""How long calls take on the device, without making it wait."""

from __future__ import annotations

import time
from typing import Protocol

import torch


class Reading(Protocol):
    """The duration of one call, which may not have ended yet."""

    def seconds(self) -> float | None:
        """Return the duration, or None while the device still works on it."""
        ...

    def wait_s(self) -> float:
        """Return the duration once the device is done."""
        ...


class Meter(Protocol):
    """Times one call after another."""

    def begin(self) -> None:
        """A call is about to be made."""
        ...

    def end(self) -> Reading:
        """The call that began was made."""
        ...


class HostMeter:
    """For devices that have done a call when it returns."""

    def __init__(self) -> None:
        self._begun_s = 0.0

    def begin(self) -> None:
        """See the protocol."""
        self._begun_s = time.perf_counter()

    def end(self) -> Reading:
        """See the protocol."""
        return _Known(time.perf_counter() - self._begun_s)


class CudaMeter:
    """For GPUs, which have only been told of a call when it returns: events mark its ends in the device's own queue."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._begun = self._mark()

    def begin(self) -> None:
        """See the protocol."""
        self._begun = self._mark()

    def end(self) -> Reading:
        """See the protocol."""
        return _Between(self._begun, self._mark())

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event


class _Known:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def seconds(self) -> float | None:
        return self._seconds

    def wait_s(self) -> float:
        return self._seconds


class _Between:
    def __init__(self, begun: torch.cuda.Event, ended: torch.cuda.Event) -> None:
        self._begun, self._ended = begun, ended

    def seconds(self) -> float | None:
        return self.wait_s() if self._ended.query() else None

    def wait_s(self) -> float:
        self._ended.synchronize()
        return self._begun.elapsed_time(self._ended) / 1000
