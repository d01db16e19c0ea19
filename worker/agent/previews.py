"""Shows callers what their pictures look like so far: compresses previews and keeps the latest of each job in Redis."""

from __future__ import annotations

import threading

import structlog
from redis.exceptions import RedisError

from service.contract.engine import PreviewDrawn
from service.contract.generation import Output
from service.contract.previews import PREVIEW_BYTES
from service.jobs.store import JobStore
from worker.agent.outputs import encode

log = structlog.get_logger(__name__)

#: WebP's quality, from the first to the last try: a preview is small, or is not shown.
_QUALITIES = (80, 50, 20)


class Previews:
    """One thread beside the executions: none of them waits for a preview, and a slow Redis costs previews alone.

    Only the latest preview of an execution waits to be shown. One that cannot be shown is dropped: another follows.
    """

    def __init__(self, store: JobStore, *, every_s: float) -> None:
        """`every_s`: least s between two previews of a job, for the engine to keep to; 0 = none."""
        self.every_s = every_s
        self._store = store
        self._changed = threading.Condition()
        self._waiting: dict[str, tuple[str, PreviewDrawn, bytes]] = {}
        self._stopped = False
        self._away = False
        self._thread = threading.Thread(target=self._run, name="previews", daemon=True)

    def start(self) -> None:
        """Begin to show."""
        self._thread.start()

    def stop(self) -> None:
        """End; what waits is not shown."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(2)

    def show(self, job_id: str, drawn: PreviewDrawn, pixels: bytes) -> None:
        """Have a preview shown, in place of an earlier one of its execution; height × width × 3, uint8 RGB."""
        with self._changed:
            self._waiting[drawn.execution_id] = job_id, drawn, pixels
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                execution_id = next(iter(self._waiting))
                job_id, drawn, pixels = self._waiting.pop(execution_id)
            try:
                data = _small_file(drawn, pixels)
                if data is not None:
                    self._store.show_preview(job_id, execution_id, data)
                self._away = False
            except (RedisError, OSError) as err:
                if not self._away:
                    log.warning("preview_not_shown", job_id=job_id, error=type(err).__name__)
                self._away = True
            except Exception:
                # The thread must outlive its own defects, and those of an engine.
                log.exception("preview_failed", job_id=job_id)


def _small_file(drawn: PreviewDrawn, pixels: bytes) -> bytes | None:
    """Return the preview as a WebP file; None where it cannot be made small enough."""
    for quality in _QUALITIES:
        output = Output(format="webp", quality=quality)
        data = encode(pixels, drawn.width_px, drawn.height_px, output).data
        if len(data) <= PREVIEW_BYTES:
            return data
    return None
