"""How many jobs this agent holds: claims as many as the engine has room for, keeps their leases, drains."""

from __future__ import annotations

import secrets
import threading
import time

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.contract.errors import FailureCode
from service.contract.job import Job, JobError, Status
from service.jobs.commands import Holding, Outcome
from service.jobs.documents import CorruptDocument
from worker.agent.execution import Execution
from worker.agent.tools import Tools

log = structlog.get_logger(__name__)

#: s between two looks at the stop flag while a bell waits: a signal handler must not take locks.
_GLANCE_S = 0.1
#: s between two tries of a claim that was not answered, and s until it is given up; with the wait for room and the
#: client's own retries far below `service.jobs.queue.BELL_TIMEOUT_S`.
_RETRY_S, _ASK_S = 0.5, 120.0
#: s to wait after Redis refused a claim.
_FAILED_S = 1.0
#: Executions whose pictures are being stored while the engine draws others.
_STORING = 4


class Slots:
    """The claims of one agent. Thread-safe, except `serve_bell`, which is RQ's one thread."""

    def __init__(self, agent_id: str, pool: str, tools: Tools) -> None:
        self.agent_id = agent_id
        self._pool = pool
        self._tools = tools
        #: Set by signal handlers, hence a plain attribute.
        self.stopping = False
        self._changed = threading.Condition()
        self._executions: dict[str, Execution] = {}
        self._drawing: set[str] = set()
        self._alone = False

    # ── claiming ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def serve_bell(self, wait_s: float) -> int:
        """Wait for room, then claim as much as fits; return how many jobs that were.

        Returns 0 when `wait_s` passed without room: the bell is rung again by count.
        """
        if not self._wait_for_room(wait_s):
            return 0
        claimed = 0
        while self._room() and self._claim():
            claimed += 1
        return claimed

    def _room(self) -> bool:
        engine = self._tools.engine
        hello, claimable = engine.hello, engine.models.claimable
        with self._changed:
            return (
                not self.stopping
                and hello is not None
                and bool(claimable)
                and not self._alone
                and len(self._drawing) < hello.capacity
                and len(self._executions) < hello.capacity + _STORING
            )

    def _wait_for_room(self, wait_s: float) -> bool:
        deadline_s = time.monotonic() + wait_s
        while not self._room():
            left_s = deadline_s - time.monotonic()
            if self.stopping or left_s <= 0:
                return False
            with self._changed:
                self._changed.wait(min(left_s, _GLANCE_S))
        return True

    def _claim(self) -> bool:
        execution_id = secrets.token_hex(8)
        try:
            job = self._ask(execution_id)
        except CorruptDocument as err:
            # Somebody else wrote into our Redis; that job can only end.
            log.error("document_corrupt", job_id=err.job_id)
            error = JobError(code=FailureCode.INTERNAL, message="The job's record is damaged.", retryable=False)
            self._tools.store.commit(err.job_id, execution_id, Outcome(Status.FAILED, error=error))
            return True
        except ResponseError as err:
            # A script that fails on what it finds fails again: not at the pace of bells.
            log.error("claim_failed", error=str(err)[:200])
            time.sleep(_FAILED_S)
            return False
        if job is None:
            return False
        execution = Execution(job, execution_id, self._tools, self)
        with self._changed:
            self._executions[execution_id] = execution
            self._drawing.add(execution_id)
            self._alone = job.suspect
        # Daemons: one that waits for Redis or S3 must not keep a drained process alive.
        threading.Thread(target=self._run, args=(execution,), name=execution_id, daemon=True).start()
        return True

    def _ask(self, execution_id: str) -> Job | None:
        """Claim for this execution, again until Redis answers: it may have a job since a reply that was lost."""
        give_up_s = time.monotonic() + _ASK_S
        while True:
            with self._changed:
                idle = not self._drawing
            models = self._tools.engine.models
            if not models.claimable:
                return None
            try:
                return self._tools.store.claim(
                    self._pool, execution_id, self.agent_id, idle=idle, models=models.claimable, warm=models.warm
                )
            except (RedisConnectionError, RedisTimeoutError) as err:
                # Not for ever: RQ ends a bell by an exception, anywhere. A lease that nobody renews runs out.
                if self.stopping or time.monotonic() >= give_up_s:
                    raise
                log.warning("claim_unanswered", error=type(err).__name__)
                time.sleep(_RETRY_S)

    def _run(self, execution: Execution) -> None:
        try:
            execution.run()
        finally:
            with self._changed:
                self._executions.pop(execution.execution_id, None)
                self._changed.notify_all()

    def engine_free(self, execution: Execution) -> None:
        """The engine is done with this execution: another may be claimed while its pictures are stored."""
        with self._changed:
            self._drawing.discard(execution.execution_id)
            if not self._drawing:
                self._alone = False
            self._changed.notify_all()

    def patience_s(self) -> float:
        """Return the longest silence that any execution which the engine draws would bear."""
        with self._changed:
            drawing = [self._executions[i] for i in self._drawing if i in self._executions]
            return max((execution.patience_s for execution in drawing), default=0.0)

    def engine_changed(self) -> None:
        """The engine became ready, or was lost."""
        with self._changed:
            self._changed.notify_all()

    # ── holding ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def holdings(self) -> list[Holding]:
        """Return every claim as it is to be renewed."""
        with self._changed:
            return [execution.holding() for execution in self._executions.values()]

    def renew(self, holdings: list[Holding]) -> None:
        """Renew these claims; stop what was canceled or is no longer ours."""
        for holding, answer in zip(holdings, self._tools.store.renew(self.agent_id, holdings), strict=True):
            if answer != "ok":
                self.stop_execution(holding.execution_id, drop=answer == "fenced")

    def stop_execution(self, execution_id: str, *, drop: bool) -> None:
        """Cancel an execution, or drop one that is no longer ours; an unknown one is ignored."""
        with self._changed:
            execution = self._executions.get(execution_id)
        if execution is None:
            return
        if drop:
            execution.drop()
        else:
            execution.cancel()

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self, grace_s: float) -> None:
        """Let what runs end within `grace_s`; hand back what does not fit, its attempt uncharged."""
        self.stopping = True
        deadline_s = time.monotonic() + grace_s
        with self._changed:
            log.info("drain_started", executions=len(self._executions), grace_s=grace_s)
            while self._executions and (left_s := deadline_s - time.monotonic()) > 0:
                self._changed.wait(left_s)
            left = list(self._executions.values())
        for execution in left:
            execution.drop()
            try:
                status = self._tools.store.release(execution.job.id, execution.execution_id, "drained")
                log.info("execution_handed_back", job_id=execution.job.id, status=status)
            except RedisError as err:
                # Its lease runs out and the job is taken back.
                log.warning("hand_back_failed", job_id=execution.job.id, error=type(err).__name__)
