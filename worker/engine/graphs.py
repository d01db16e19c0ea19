"""Calls that come often, recorded once and then repeated: the device is told of one graph, not of 2 000 kernels.

A small model's step takes a GPU two milliseconds and Python fifteen. A recording is of one shape and one place in
memory: what changes between calls is copied into it, and its result out of it. Pictures are those of the same call
made eagerly, to the bit, for it is the same kernels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
import torch

from worker.engine.calls import Joined, Path, leaves_of, rebuilt
from worker.engine.faults import Fault, classify, free_memory
from worker.engine.lessons import Lesson

log = structlog.get_logger()

#: How a call is made where it is not repeated.
Make = Callable[[torch.nn.Module, Joined], Any]

#: A call is recorded when it comes for this time: recording takes about a second, which a rare size never earns.
_AFTER = 4
#: Recordings of one model. Each keeps what its widest layers need, in memory that all of them share.
_MOST = 32
#: Calls that are counted, or known not to be recordable.
_KNOWN = 512
#: Calls before a recording, for what libraries do at their first: choose algorithms, take workspace.
_WARM_UPS = 2


class NotRecorded(Exception):
    """The call cannot be recorded, or not with the memory there is; the device is sound."""


class Recorder(Protocol):
    """Records what a device is told to do."""

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Return what repeats the call on the same memory, and its result, which every repetition overwrites.

        Raises `NotRecorded`; any other error is one of the device.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs, all of them in one pool of memory.

    They may share it because they run one after the other, and nothing of one is looked at once another runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """See the protocol."""
        outside = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            self._stream.wait_stream(outside)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    call()
            outside.wait_stream(self._stream)
            # What other threads ask of the device meanwhile, for a model that is being loaded, is no part of it.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = call()
        except Exception as err:
            # A recording that was broken off may leave its stream current, and names its own end a CUDA error. What is
            # really wrong with the device shows when it is waited for.
            torch.cuda.set_stream(outside)
            torch.cuda.synchronize(self._device)
            raise NotRecorded(type(err).__name__) from err
        return graph.replay, result


@dataclass(frozen=True, slots=True)
class _Recording:
    inputs: Mapping[Path, torch.Tensor]
    repeat: Callable[[], None]
    result: Any
    #: Kept so that no other module can come to have its id.
    module: torch.nn.Module
    weights: tuple[torch.Tensor, ...]
    #: Where the weights were. A repetition reads them there, whatever has been moved since.
    addresses: tuple[int, ...]

    def is_sound(self) -> bool:
        return _addresses(self.weights) == self.addresses


class Graphs:
    """Makes calls of one model, those that come often by repetition. Expects few shapes: see `buckets`."""

    def __init__(self, make: Make, recorder: Recorder, *, after: int = _AFTER, most: int = _MOST) -> None:
        """`make` makes a call, and is what is recorded; the `after`th call of a kind is; `most`: recordings kept."""
        self._make = make
        self._recorder = recorder
        self._after = after
        self._most = most
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        #: Key → how often it came; None: it cannot be recorded.
        self._seen: OrderedDict[Hashable, int | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recordings)

    def run(self, module: torch.nn.Module, joined: Joined) -> tuple[Any, Lesson]:
        """Return what the module returns, in memory of its own, and what the call teaches."""
        try:
            return self._run(module, joined)
        except Exception as err:
            if classify(err) is Fault.OUT_OF_MEMORY:
                # Recordings hold memory that only they can use; the call will be made again.
                self.drop()
            raise

    def _run(self, module: torch.nn.Module, joined: Joined) -> tuple[Any, Lesson]:
        key = _key(module, joined)
        recording = self._recordings.get(key)
        if recording is not None and not recording.is_sound():
            log.info("recordings_dropped", reason="the weights were moved", recordings=len(self))
            self.drop()
            recording = None
        lesson = Lesson.TIME
        if recording is None and self._is_due(key):
            recording, lesson = self._record(key, module, joined), Lesson.NOTHING
        if recording is None:
            return self._make(module, joined), Lesson.EVERYTHING if lesson is Lesson.TIME else lesson
        self._recordings.move_to_end(key)
        for path, place in recording.inputs.items():
            place.copy_(joined.leaves[path])
        recording.repeat()
        return _copied(recording.result), lesson

    def drop(self) -> None:
        """Forget every recording, and give their memory back; each must come often again to be made anew."""
        while self._recordings:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        key, _ = self._recordings.popitem(last=False)
        self._seen[key] = 0

    def _is_due(self, key: Hashable | None) -> bool:
        """Count a call; return whether it has come often enough to be recorded."""
        if key is None:
            return False
        count = self._seen.pop(key, 0)
        self._seen[key] = None if count is None else count + 1
        while len(self._seen) > _KNOWN:
            self._seen.popitem(last=False)
        return count is not None and count + 1 >= self._after

    def _record(self, key: Hashable, module: torch.nn.Module, joined: Joined) -> _Recording | None:
        """Record the call; None, and a line in the log, where it cannot be: it is then made eagerly for good."""
        # In memory of their own: the caller's tensors go back to the allocator after this call.
        inputs = {path: leaf.clone() for path, leaf in joined.leaves.items() if isinstance(leaf, torch.Tensor)}
        fixed = joined.but({**joined.leaves, **inputs}, joined.rows)
        recorded: tuple[Callable[[], None], Any] | None = None
        reason = ""
        try:
            recorded = self._recorder.record(lambda: self._make(module, fixed))
        except NotRecorded as err:
            reason = str(err)
        if recorded is None:
            # Outside of the handler, whose error keeps the tensors of what failed.
            free_memory()
            self._seen[key] = None
            log.warning("call_not_recorded", reason=reason, rows=joined.rows)
            return None
        weights = (*module.parameters(), *module.buffers())
        recording = _Recording(inputs, *recorded, module, weights, _addresses(weights))
        self._recordings[key] = recording
        while len(self._recordings) > self._most:
            self._forget_oldest()
        log.info("call_recorded", rows=joined.rows, recordings=len(self))
        return recording


def _key(module: torch.nn.Module, joined: Joined) -> Hashable | None:
    """Return what a recording depends on: shapes and formats of tensors, everything else by value. None: not told."""
    parts: list[Hashable] = [id(module)]
    for path, leaf in joined.leaves.items():
        if isinstance(leaf, torch.Tensor):
            parts.append((path, tuple(leaf.shape), leaf.dtype, leaf.device))
        elif isinstance(leaf, Hashable):
            parts.append((path, type(leaf), leaf))
        else:
            return None
    return tuple(parts)


def _addresses(tensors: tuple[torch.Tensor, ...]) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _copied(returned: Any) -> Any:
    return rebuilt(
        returned, {path: leaf.clone() for path, leaf in leaves_of(returned) if isinstance(leaf, torch.Tensor)}
    )
