from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from service.cli.failure import CommandFailed
from service.cli.home import Home
from service.cli.stopping import Stopped, StopRequest
from service.cli.supervisor import ProcessPart, Supervisor
from service.cli.terminal import Terminal


def until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module that writes its process id, and ends as its file `orders` says."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "child_of_the_test.py").write_text(
        "import os, pathlib, sys, time\n"
        "here = pathlib.Path(__file__).parent\n"
        "orders = here / 'orders'\n"
        "print('I am here', flush=True)\n"
        "with (here / 'pids').open('a') as pids:\n"
        "    print(os.getpid(), file=pids)\n"
        "while not orders.exists():\n"
        "    time.sleep(0.02)\n"
        "sys.exit('I was told to end')\n"
    )
    return folder


def pids(module: Path) -> list[int]:
    file = module / "pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def part_of(module: Path, tmp_path: Path) -> ProcessPart:
    environment = {**os.environ, "PYTHONPATH": str(module)}
    return ProcessPart("worker", "child_of_the_test", log_path=tmp_path / "worker.log", env=environment, grace_s=5)


def silent() -> tuple[Terminal, io.StringIO]:
    stream = io.StringIO()
    return Terminal(Console(file=stream, width=400)), stream


def test_part_that_ends_while_starting_is_reported_with_the_end_of_its_log(module: Path, tmp_path: Path) -> None:
    (module / "orders").touch()
    supervisor = Supervisor(silent()[0])
    part = part_of(module, tmp_path)
    supervisor.start(part)
    until(lambda: part.poll() is not None)
    with pytest.raises(CommandFailed, match=r"exit code 1 while starting(?s:.)*I was told to end"):
        supervisor.check()
    supervisor.stop()


def test_killed_part_is_started_again_and_everything_is_gone_after_stop(module: Path, tmp_path: Path) -> None:
    terminal, stream = silent()
    supervisor = Supervisor(terminal)
    supervisor.start(part_of(module, tmp_path))
    until(lambda: len(pids(module)) == 1)
    os.kill(pids(module)[0], signal.SIGKILL)

    def mended() -> bool:
        supervisor.mend()
        return len(pids(module)) == 2

    until(mended)
    assert "The worker was ended by SIGKILL; it is started again in 1 s" in stream.getvalue()
    assert supervisor.all_run
    supervisor.stop()
    assert [pid for pid in pids(module) if alive(pid)] == []


def test_parts_that_do_not_listen_are_waited_for_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "deaf_child.py").write_text(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    logs = [tmp_path / f"{number}.log" for number in range(4)]
    supervisor = Supervisor(silent()[0])
    for log in logs:
        supervisor.start(ProcessPart(log.stem, "deaf_child", log_path=log, env=environment, grace_s=2))
    until(lambda: all("deaf" in log.read_text() for log in logs))
    began_s = time.monotonic()
    supervisor.stop()
    assert 2 <= time.monotonic() - began_s < 6


def test_home_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    with Home(tmp_path / "home").held():
        code = "import sys, pathlib; from service.cli.home import Home\n"
        code += "with Home(pathlib.Path(sys.argv[1])).held(): pass"
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "home")], capture_output=True, text=True, check=False
        )
        assert f"already (process {os.getpid()})" in other.stderr
    with Home(tmp_path / "home").held():
        pass


def test_log_of_the_start_before_is_kept(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.held():
        home.log_path("worker").write_text("first")
        assert not home.log_path("worker").exists()
        assert (home.logs / "worker.log.1").read_text() == "first"


@pytest.fixture
def default_hangup() -> Iterator[None]:
    """SIGHUP as a terminal's processes have it, also where the tests run under `nohup`."""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, earlier)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_request_ends_a_wait_at_once_and_nothing_else(number: signal.Signals, default_hangup: None) -> None:
    with StopRequest.listening() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        started = time.monotonic()
        with pytest.raises(Stopped):
            stop.wait(30)
        assert time.monotonic() - started < 5
        with pytest.raises(Stopped):
            stop.check()


def test_hangup_that_nohup_ignores_stays_ignored(default_hangup: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest.listening() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        stop.wait(0.1)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
