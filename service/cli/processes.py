"""Child processes of a foreground command: started apart from the terminal, and never left behind.

Each child has its own session, so a Ctrl-C in the terminal reaches the parent alone, which then stops its children in
an order of its own. A guardian, a few lines of `/bin/sh` at the other end of a pipe, ends the child when the parent is
gone without having stopped it (SIGKILL, a crash). Linux has PR_SET_PDEATHSIG for that, but it fires when the *thread*
that started the child ends, does not exist on macOS, and leaves no time for a graceful stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: $1 = seconds between SIGTERM and SIGKILL. Reads the child's process group, then waits: another line means that the
#: child has ended, the end of the pipe means that the parent has. `kill -s … --` is what all of dash, bash, zsh and
#: busybox understand.
_GUARDIAN = """
trap '' HUP INT TERM
read -r group || exit 0
read -r ended && exit 0
kill -s TERM -- "-$group" 2>/dev/null || exit 0
tenths=0
while [ "$tenths" -lt "$(($1 * 10))" ] && kill -s 0 -- "-$group" 2>/dev/null; do
    sleep 0.1
    tenths=$((tenths + 1))
done
kill -s KILL -- "-$group" 2>/dev/null
exit 0
"""


class ChildProcess:
    """One running child. Its standard output and error are appended to a log file."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        stdin: bytes = b"",
        pass_fds: Sequence[int] = (),
        grace_s: int = 10,
    ) -> None:
        """Start it. `stdin`: at most 4 KiB; `grace_s`: between SIGTERM and SIGKILL. OSError where it cannot be run."""
        self._grace_s = grace_s
        #: When it was asked to end, by the monotonic clock.
        self._asked_s: float | None = None
        self._guardian = subprocess.Popen(  # noqa: S603 - a script of ours
            ["/bin/sh", "-c", _GUARDIAN, "darkroom-guardian", str(grace_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with log_path.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - an argument list of ours, no shell
                    list(argv),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(env),
                    cwd=cwd,
                    pass_fds=tuple(pass_fds),
                    start_new_session=True,
                )
        except BaseException:
            self._dismiss_guardian()
            raise
        _write(self._guardian, b"%d\n" % self._process.pid)
        _write(self._process, stdin)
        _close_stdin(self._process)

    @property
    def pid(self) -> int:
        """The child's process id, which is its process group's too."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that ended it), or None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._dismiss_guardian()
        return code

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, or None when it still runs after `timeout_s`."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return self.poll()

    def terminate(self) -> None:
        """Ask it to end, and return at once; several children can so stop side by side."""
        if self.poll() is None and self._asked_s is None:
            self._asked_s = time.monotonic()
            self._process.terminate()

    def stop(self) -> int:
        """End it: SIGTERM, then SIGKILL to its whole group after the grace period. Returns the exit code.

        The period began when it was asked to end: those that were asked side by side take no longer than the longest.
        """
        self.terminate()
        waited_s = 0.0 if self._asked_s is None else time.monotonic() - self._asked_s
        code = self.wait(max(0.0, self._grace_s - waited_s))
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
            self._dismiss_guardian()
        return code

    def _dismiss_guardian(self) -> None:
        """Tell the guardian that there is nothing left to end, before the process id can be another's."""
        if self._guardian.stdin is not None and not self._guardian.stdin.closed:
            _write(self._guardian, b"ended\nended\n")
            _close_stdin(self._guardian)
        self._guardian.wait()


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended already, which `poll` will say
        if process.stdin is not None:
            process.stdin.write(data)
            process.stdin.flush()


def _close_stdin(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()
