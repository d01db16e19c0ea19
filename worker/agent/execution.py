"""One claimed job, from its input pictures to its commit."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import structlog
from redis.exceptions import RedisError, ResponseError

from service.contract.engine import Finished, Generate, ImageDrawn, PhaseStarted, PreviewDrawn, Refused, StepDone
from service.contract.errors import RETRYABLE_FAILURES, FailureCode, GenerationFailed
from service.contract.framing import Buffer
from service.contract.generation import CONTENT_TYPES, Receipt, ResultImage, StoredInput, Timings
from service.contract.job import Job, JobError, Status
from service.jobs.commands import Holding, Outcome, ReleaseReason
from service.storage.errors import ObjectDamaged, ObjectMissing, ObjectTooLarge, StorageError, StorageUnavailable
from service.storage.keys import execution_prefix, image_key
from worker.agent.child import EngineEvent, EngineLost
from worker.agent.infotext import infotext
from worker.agent.outputs import encode
from worker.agent.tools import Tools
from worker.agent.tracing import ExecutionTrace

log = structlog.get_logger(__name__)

#: Bytes of a stored input; the gateway's own limit is lower.
_INPUT_LIMIT_BYTES = 64 << 20
_DECODE_S = 30.0
#: s between two tries of an upload or a commit while the other side is away.
_RETRY_S = 0.5
#: s; the engine's silence is counted in such pieces.
_WATCH_S = 1.0
#: A script that failed this often on one record is not run again.
_SCRIPT_FAILURES = 3
#: s that an upload may take in all where the job has no deadline of its own.
_UPLOAD_S = 600.0


#: What the engine said of a picture, and its pixels; None when it is withheld.
_Picture = tuple[ImageDrawn, bytes | None]


class _Canceled(Exception):
    """The caller no longer wants the job; caught in `Execution.run`."""


class _Dropped(Exception):
    """This execution no longer holds its job, or gives it back; caught in `Execution.run`."""


class Floor(Protocol):
    """Where an execution stands in its agent: `worker.agent.slots.Slots`."""

    def engine_free(self, execution: Execution) -> None:
        """The engine is done with this execution: another may be claimed while its pictures are stored."""
        ...

    def patience_s(self) -> float:
        """Return the longest silence that any execution of this agent would bear of the engine."""
        ...


@dataclass(slots=True)
class _Progress:
    step: int = 0
    steps: int = 0
    phase: str = ""
    sign_s: float = field(default_factory=time.monotonic)


class Execution:
    """Draws one job. `run` is called once, on a thread of its own; everything else from any thread."""

    def __init__(self, job: Job, execution_id: str, tools: Tools, floor: Floor) -> None:
        self.job = job
        self.execution_id = execution_id
        self._tools = tools
        self._floor = floor
        self._events: queue.SimpleQueue[tuple[EngineEvent, list[bytes]]] = queue.SimpleQueue()
        self._progress = _Progress()
        self._canceled = threading.Event()
        self._dropped = threading.Event()
        self._uploaded = False
        #: s that its phase may stay silent; 0 while nothing is awaited of the engine.
        self.patience_s = 0.0
        self._times: dict[str, float] = {}
        self._trace = ExecutionTrace(tools.tracer, job, execution_id)

    # ── from other threads ────────────────────────────────────────────────────────────────────────────────────────────

    def holding(self) -> Holding:
        """Return the claim as it is to be renewed."""
        progress = self._progress
        return Holding(self.job.id, self.execution_id, progress.step, progress.steps, progress.phase)

    def cancel(self) -> None:
        """The caller no longer wants the job."""
        self._canceled.set()
        self._tools.engine.cancel(self.execution_id)

    def drop(self) -> None:
        """The job is no longer ours: stop and commit nothing."""
        self._dropped.set()
        self._tools.engine.cancel(self.execution_id)

    # ── the execution's own thread ────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Draw, store, commit; whatever happens, the job ends or goes back."""
        with structlog.contextvars.bound_contextvars(
            job_id=self.job.id, request_id=self.job.request_id, **self._trace.log_fields
        ):
            try:
                outcome = self._draw()
            except _Canceled:
                outcome = Outcome(Status.CANCELED)
            except GenerationFailed as err:
                outcome = _failed(FailureCode(err.failure), err.message)
            except _Dropped:
                self._clean_up()
                self._count("dropped")
                return
            except Exception:
                # One job's defect must not stop its worker.
                log.exception("execution_failed")
                outcome = _failed(FailureCode.INTERNAL, "Darkroom failed; its log says why.")
            finally:
                self._tools.engine.release(self.execution_id)
                self._floor.engine_free(self)
            try:
                self._commit(outcome)
            except _Dropped:
                log.info("commit_left_to_the_next", status=str(outcome.status))
                self._count("dropped")

    def _draw(self) -> Outcome:
        started_s = time.monotonic()
        with self._trace.stage("inputs"):
            buffers = self._inputs()
        self._times["inputs"] = time.monotonic() - started_s
        self._check()
        message = Generate(
            execution_id=self.execution_id,
            spec=self.job.spec,
            sizes_px=tuple((self.job.spec.width, self.job.spec.height) for _ in buffers),
            alone=self.job.suspect,
            previews_s=0.0 if self.job.suspect else self._tools.previews.every_s,
        )
        self._progress = _Progress(phase="encode")
        self._tools.engine.generate(message, buffers, lambda event, data: self._events.put((event, data)))
        drawn, finished = self._listen()
        self._tools.engine.release(self.execution_id)
        self._floor.engine_free(self)
        images = self._store(drawn, finished.receipt)
        return Outcome(Status.SUCCEEDED, images=images, timings=self._timings(finished), receipt=finished.receipt)

    def _inputs(self) -> list[Buffer]:
        """Fetch and decode the input pictures: RGB for the image, 8-bit grey for the mask, both of the asked size."""
        spec = self.job.spec
        buffers: list[Buffer] = []
        wanted: tuple[tuple[StoredInput | None, Literal["RGB", "L"]], ...] = ((spec.image, "RGB"), (spec.mask, "L"))
        for stored, mode in wanted:
            if stored is None:
                continue
            data = self._fetch(stored)
            decoded = self._tools.decoders.decode(data, mode=mode, deadline_s=_DECODE_S, size=(spec.width, spec.height))
            buffers.append(decoded.pixels)
        return buffers

    def _fetch(self, stored: StoredInput) -> bytes:
        give_up_s = time.monotonic() + self._upload_limit_s()
        while True:
            self._check()
            try:
                return self._tools.storage.get(stored.key, max_bytes=_INPUT_LIMIT_BYTES, sha256=stored.sha256)
            except (ObjectMissing, ObjectDamaged, ObjectTooLarge) as err:
                text = "An input picture is no longer in storage as it was sent."
                raise GenerationFailed(FailureCode.STORAGE_FAILED, text) from err
            except StorageUnavailable as err:
                self._wait_for_storage(give_up_s, err)

    def _listen(self) -> tuple[list[_Picture], Finished]:
        """Follow the engine until it is done; return the pictures in order."""
        drawn: list[_Picture] = []
        while True:
            event, data = self._next_event()
            match event:
                case PhaseStarted():
                    self._trace.phase(event.phase)
                    self._sign(phase=event.phase)
                case StepDone():
                    self._sign(step=event.step, steps=event.steps)
                case PreviewDrawn():
                    self._tools.previews.show(self.job.id, event, b"".join(data))
                case ImageDrawn():
                    self._sign()
                    drawn.append((event, data[0] if data else None))
                case Finished():
                    self._trace.phase(None)
                    if self._dropped.is_set():
                        raise _Dropped
                    return self._complete(drawn), event
                case Refused():
                    self._refused(event)
                case EngineLost():
                    self._give_back("engine_lost" if event.had_it else "drained")
                case _:
                    log.error("engine_message_unexpected", type=event.type)

    def _complete(self, drawn: list[_Picture]) -> list[_Picture]:
        """Return the pictures in order; an engine that finished without all of them has a defect."""
        pictures = sorted(drawn, key=lambda pair: pair[0].index)
        indices = [event.index for event, _ in pictures]
        if indices != list(range(self.job.spec.num_images)) or any(
            (pixels is None) != event.flagged for event, pixels in pictures
        ):
            log.error("pictures_missing", indices=indices)
            raise GenerationFailed(FailureCode.INTERNAL, "The engine did not give every picture.")
        return pictures

    def _next_event(self) -> tuple[EngineEvent, list[bytes]]:
        """Wait for the engine's next word; a phase that stays silent for too long ends the engine.

        Only time that this process was awake for counts: after a pause the engine's words are still to be read. And
        only time in which the engine said nothing to anybody: it draws for others too, whose calls may be longer.
        """
        spec, engine = self.job.spec, self._tools.engine
        self.patience_s = self._tools.clock.limit_s(spec.model, self._progress.phase, spec.width * spec.height)
        waited_s, words = 0.0, engine.words
        while True:
            limit_s = max(self.patience_s, self._floor.patience_s())
            slice_s = max(0.0, min(_WATCH_S, limit_s - waited_s))
            try:
                return self._events.get(timeout=slice_s)
            except queue.Empty:
                waited_s = waited_s + slice_s if engine.words == words else 0.0
                words = engine.words
            if waited_s >= limit_s:
                log.error("engine_silent", phase=self._progress.phase, limit_s=round(limit_s, 1))
                self._tools.engine.kill()
                waited_s = 0.0

    def _sign(self, *, phase: str | None = None, step: int | None = None, steps: int = 0) -> None:
        was = self._progress
        now_s = time.monotonic()
        pixels = self.job.spec.width * self.job.spec.height
        self._tools.clock.measured(self.job.model, was.phase, pixels, now_s - was.sign_s)
        self._progress = _Progress(
            step=was.step if step is None else step,
            steps=steps or was.steps,
            phase=was.phase if phase is None else phase,
            sign_s=now_s,
        )

    def _refused(self, event: Refused) -> None:
        if self._dropped.is_set():
            raise _Dropped
        if event.code == "canceled":
            raise _Canceled
        raise GenerationFailed(event.code, event.message)

    def _give_back(self, reason: ReleaseReason) -> None:
        """The engine died: under this job, and it is run again, alone; or before it had it."""
        if not self._dropped.is_set():
            status = self._patiently(lambda: self._tools.store.release(self.job.id, self.execution_id, reason))
            log.info("execution_given_back", status=status, reason=reason)
        raise _Dropped

    def _store(self, drawn: list[_Picture], receipt: Receipt) -> tuple[ResultImage, ...]:
        """Compress and upload every picture; nothing succeeds without its objects."""
        spec = self.job.spec
        images: list[ResultImage] = []
        compress_s = upload_s = 0.0
        for event, pixels in drawn:
            if pixels is None:
                images.append(_result(event, flagged=True))
                continue
            begun_s = time.monotonic()
            parameters = infotext(spec, event.seed, receipt) if spec.output.embed_parameters else None
            with self._trace.stage("compress"):
                file = encode(pixels, event.width_px, event.height_px, spec.output, parameters)
            compressed_s = time.monotonic()
            name = image_key(self.job.object_prefix, self.execution_id, event.index, spec.output.format)
            with self._trace.stage("upload"):
                self._upload(name, file.data, file.content_type, file.sha256)
            compress_s += compressed_s - begun_s
            upload_s += time.monotonic() - compressed_s
            stored = {"key": name, "bytes": len(file.data), "sha256": file.sha256}
            images.append(_result(event, content_type=CONTENT_TYPES[spec.output.format], **stored))
        self._times |= {"compress": compress_s, "upload": upload_s}
        return tuple(images)

    def _upload(self, name: str, data: bytes, content_type: str, sha256: str) -> None:
        give_up_s = time.monotonic() + self._upload_limit_s()
        self._uploaded = True
        while True:
            self._check()
            try:
                self._tools.storage.put(name, data, content_type=content_type, sha256=sha256)
            except StorageError as err:
                self._wait_for_storage(give_up_s, err)
            else:
                return

    def _wait_for_storage(self, give_up_s: float, err: StorageError) -> None:
        if time.monotonic() >= give_up_s:
            raise GenerationFailed(FailureCode.STORAGE_FAILED, "The storage did not answer in time.") from err
        log.warning("storage_unavailable", error=type(err).__name__)
        self._dropped.wait(_RETRY_S)

    def _upload_limit_s(self) -> float:
        finish_by_ms = self.job.finish_by_ms
        return _UPLOAD_S if finish_by_ms is None else max(1.0, finish_by_ms / 1000 - time.time())

    def _check(self) -> None:
        """Stop here where the job is canceled or no longer ours."""
        if self._dropped.is_set():
            raise _Dropped
        if self._canceled.is_set():
            raise _Canceled

    def _commit(self, outcome: Outcome) -> None:
        """End the job; a result waits for Redis as long as this process lives."""
        with self._trace.stage("commit"):
            reply = self._patiently(lambda: self._tools.store.commit(self.job.id, self.execution_id, outcome))
        log.info("generation_ended", status=str(outcome.status), commit=reply, attempt=self.job.attempt)
        if reply == "fenced":
            self._count("fenced")
        else:
            stored = sum(not image.flagged for image in outcome.images)
            self._count(str(outcome.status), images=stored, timings=outcome.timings)
        if reply == "fenced" or outcome.status is not Status.SUCCEEDED:
            self._clean_up()

    def _count(self, outcome: str, *, images: int = 0, timings: Timings | None = None) -> None:
        self._tools.metrics.ended(self.job.model, outcome, images=images, timings=timings)
        self._trace.end(outcome, timings)

    def _patiently(self, call: Callable[[], str | Status | None]) -> str | Status | None:
        """Repeat a call to Redis until it is answered: every script may be repeated.

        A script that fails on what it finds fails again; such a record is left to its lease.
        """
        failures = 0
        while True:
            try:
                return call()
            except (RedisError, OSError) as err:
                # Subclasses pass: no memory left, read-only, still loading.
                failures += type(err) is ResponseError
                log.warning("redis_unavailable", error=type(err).__name__)
                if failures >= _SCRIPT_FAILURES or self._dropped.wait(_RETRY_S):
                    raise _Dropped from err

    def _clean_up(self) -> None:
        """Delete this execution's own objects, and nothing else: no record names them."""
        if not self._uploaded:
            return
        try:
            self._tools.storage.delete_prefix(execution_prefix(self.job.object_prefix, self.execution_id))
        except StorageError as err:
            # They lie under the job's prefix: its erasure takes them along.
            log.warning("objects_left_behind", error=type(err).__name__)

    def _timings(self, finished: Finished) -> Timings:
        job = self.job
        return Timings(
            queued_s=max(0, (job.started_ms or job.created_ms) - job.created_ms) / 1000,
            inputs_s=round(self._times["inputs"], 4),
            load_s=round(finished.load_s, 4),
            encode_s=round(finished.encode_s, 4),
            denoise_s=round(finished.denoise_s, 4),
            decode_s=round(finished.decode_s, 4),
            compress_s=round(self._times["compress"], 4),
            upload_s=round(self._times["upload"], 4),
            gpu_s=round(finished.gpu_s, 4),
        )


def _result(event: ImageDrawn, **stored: Any) -> ResultImage:
    return ResultImage(index=event.index, seed=event.seed, width_px=event.width_px, height_px=event.height_px, **stored)


def _failed(code: FailureCode, message: str) -> Outcome:
    return Outcome(Status.FAILED, error=JobError(code=code, message=message, retryable=code in RETRYABLE_FAILURES))
