"""What the process that decodes input pictures can do besides: nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from worker.agent import decoder
from worker.agent.inputs import Decoders

_PROBES = """
import ctypes, json, mmap, os, resource, signal, socket, subprocess, sys, threading, time
import worker.agent.decoder as decoder

def attempt(name, call):
    try:
        call()
    except BaseException as err:
        outcome[name] = type(err).__name__
    else:
        outcome[name] = "done"

libc = ctypes.CDLL(None, use_errno=True)
def c(function, *arguments):
    if getattr(libc, function)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), function)

outcome = {}
parent = os.getppid()
os.environ.clear()
filtered = decoder.lock_down() if sys.argv[2] == "filter" else decoder.limit_resources()
probes = {
    "open": lambda: open("/etc/passwd"),
    "create": lambda: open(sys.argv[1] + "/new", "w"),
    "list": lambda: os.listdir("/"),
    "stat": lambda: os.stat("/etc/passwd"),
    "unlink": lambda: os.unlink(sys.argv[1] + "/there"),
    "dup": lambda: os.dup(0),
    "pipe": os.pipe,
    "socket": socket.socket,
    "socketpair": socket.socketpair,
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "spawn": lambda: subprocess.run(["/bin/true"]),
    "thread": lambda: threading.Thread(target=int).start(),
    "kill": lambda: os.kill(parent, 0),
    "ptrace": lambda: c("ptrace", 0, 0, 0, 0),
    "process_vm_readv": lambda: c("process_vm_readv", parent, 0, 0, 0, 0, 0),
    "prlimit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    "prctl": lambda: c("prctl", 4, 1, 0, 0, 0),
    "io_uring": lambda: c("syscall", 425, 8, 0),
    "executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "chdir": lambda: os.chdir("/"),
    "much memory": lambda: bytearray(2 << 30),
}
for name in sys.argv[3:] or probes:
    attempt(name, probes[name])
data = json.dumps({"filtered": filtered, "environment": dict(os.environ), "outcome": outcome}).encode()
os.write(1, data)
os._exit(0)
"""


def probed(folder: Path, how: str, *names: str) -> dict[str, Any]:
    (folder / "there").touch()
    probe = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(_PROBES), str(folder), how, *names],
        capture_output=True,
        env={"AWS_SECRET_ACCESS_KEY": "secret"},
        check=True,
        timeout=60,
    )
    return json.loads(probe.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="system-call filters are Linux'")
def test_locked_down_process_can_do_nothing_but_compute(tmp_path: Path) -> None:
    told = probed(tmp_path, "filter")
    assert told["filtered"] is True
    assert told["environment"] == {}
    assert len(told["outcome"]) == 22
    assert "done" not in told["outcome"].values(), told["outcome"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_resource_limits_alone_bar_files_sockets_and_memory(tmp_path: Path) -> None:
    barred = dict.fromkeys(["open", "create", "list", "dup", "pipe", "socket", "socketpair"], "OSError")
    if sys.platform == "linux":
        barred["much memory"] = "MemoryError"
    assert probed(tmp_path, "limits", *barred)["outcome"] == barred


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_waiting_decoder_is_locked_down_before_it_has_seen_a_byte() -> None:
    own = Decoders()
    try:
        spare = own._spares[0]
        assert spare.ready() == decoder.READY_FILTERED
        proc = Path("/proc") / str(spare._process.pid)
        assert "Seccomp:\t2" in (proc / "status").read_text()
        assert "NoNewPrivs:\t1" in (proc / "status").read_text()
        assert sorted(path.name for path in (proc / "fd").iterdir()) == ["0", "1", "2"]
        assert (proc / "fd" / "2").readlink() == Path("/dev/null")
        limits = (proc / "limits").read_text()
        for name in ("Max open files", "Max processes", "Max file size", "Max core file size"):
            assert limits.partition(name)[2].split()[:2] == ["0", "0"]
        assert (proc / "environ").read_bytes() in {b"", b"LC_CTYPE=C.UTF-8\0"}  # Python's own, PEP 538
    finally:
        own.close()


def test_decoder_knows_no_more_than_it_needs() -> None:
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", "import sys, worker.agent.decoder; print(*sys.modules)"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    plugins = {name for name in loaded if name.startswith("PIL.") and name.endswith("ImagePlugin")}
    assert plugins <= {f"PIL.{name}ImagePlugin" for name in ("Png", "Jpeg", "WebP", "Tiff")}
    assert not {"pydantic", "structlog", "boto3", "redis", "numpy", "socket"} & set(loaded)
