"""The servers that `darkroom up` and these tests bring along."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.cli.embedded import CannotStart, EmbeddedS3, EmbeddedValkey
from service.cli.processes import ChildProcess
from service.settings.groups import StorageSettings
from service.storage.s3 import ObjectStorage

REPOSITORY = Path(__file__).parents[2]


def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat_file = Path(f"/proc/{pid}/stat")  # a container's init may leave a zombie
    return stat_file.exists() and stat_file.read_text().rpartition(")")[2].split()[0] == "Z"


def test_valkey_keeps_what_it_acknowledged_when_it_is_killed(data_dir: Path) -> None:
    server = EmbeddedValkey(data_dir)
    server.start()
    client = redis.Redis.from_url(server.url)
    assert client.config_get("appendfsync") == {"appendfsync": "always"}
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    client.set("job", "accepted")
    client.close()
    url = server.url
    os.kill(server.pid, signal.SIGKILL)
    _until(lambda: server.poll() is not None)

    again = EmbeddedValkey(data_dir)
    again.start()
    try:
        assert again.url == url
        client = redis.Redis.from_url(again.url)
        assert client.get("job") == b"accepted"
        client.close()
    finally:
        again.stop()
        server.stop()


def test_valkey_asks_for_its_password(data_dir: Path) -> None:
    server = EmbeddedValkey(data_dir, fsync="off")
    server.start()
    try:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        command = subprocess.run(["ps", "-ww", "-p", str(server.pid), "-o", "args="], capture_output=True, check=True)
        assert server.url.partition(":")[2].partition("@")[0].strip("/:").encode() not in command.stdout
        assert stat.S_IMODE((data_dir / "instance.json").stat().st_mode) == 0o600
    finally:
        server.stop()


def test_stop_ends_valkey_and_may_be_repeated(data_dir: Path) -> None:
    server = EmbeddedValkey(data_dir)
    server.start()
    pid = server.pid
    server.stop()
    assert _gone(pid)
    server.stop()


def test_second_server_on_a_live_folder_says_so(data_dir: Path) -> None:
    server = EmbeddedValkey(data_dir)
    server.start()
    try:
        with pytest.raises(CannotStart, match=f"is in use by a running server \\(process {server.pid}\\)"):
            EmbeddedValkey(data_dir).start()
        assert server.poll() is None
    finally:
        server.stop()


def test_stale_lock_does_not_bar_a_start(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "lock").write_text("1\n")
    server = EmbeddedValkey(data_dir, fsync="off")
    server.start()
    server.stop()


def test_port_in_use_is_one_clear_line(data_dir: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(CannotStart) as refused:
            EmbeddedValkey(data_dir, port).start()
    assert str(refused.value) == f"Valkey: port {port} on 127.0.0.1 is in use"


def test_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotStart, match="cannot be used: Not a directory"):
        EmbeddedValkey(tmp_path / "file" / "data").start()


def test_server_that_gives_up_is_quoted_and_leaves_nothing_running(data_dir: Path) -> None:
    first = EmbeddedValkey(data_dir)
    first.start()
    first.stop()
    shutil.rmtree(data_dir / "appendonlydir")
    (data_dir / "appendonlydir").write_text("a file in the folder's place")
    server = EmbeddedValkey(data_dir)
    with pytest.raises(CannotStart, match="Valkey did not start: it ended with code 1") as refused:
        server.start()
    assert "\n" not in str(refused.value)
    assert server.poll() is None
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.pid


def test_damaged_instance_file_is_one_clear_line(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "instance.json").write_text("{}")
    with pytest.raises(CannotStart, match=r"instance\.json cannot be read"):
        EmbeddedValkey(data_dir).start()


def test_s3_keeps_objects_over_a_kill_and_a_start_on_another_port(data_dir: Path) -> None:
    data = b"first" * 100_000
    server = EmbeddedS3(data_dir)
    server.start()
    try:
        first = _port(server.settings)
        _put(server.settings, "kept/1", data)
        os.kill(server.pid, signal.SIGKILL)
        _until(lambda: server.poll() is not None)
        with socket.socket() as holder:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", first))
            holder.listen()
            server.start()
        second = _port(server.settings)
        assert second != first
        storage = ObjectStorage(server.settings)
        assert storage.get("kept/1", max_bytes=1 << 20) == data
        storage.close()
    finally:
        server.stop()
    left = range(second, second + 5), range(first + 1, first + 5), range(first + 10_000, first + 10_005)
    for path in Path("/tmp").glob(f"seaweedfs-*-{first}.sock"):  # it stayed because the port was ours
        path.unlink()
    assert not [path for ports in left for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]


def _listens(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


def _port(settings: StorageSettings) -> int:
    return int(str(settings.endpoint).rpartition(":")[2])


def _put(settings: StorageSettings, key: str, data: bytes) -> None:
    storage = ObjectStorage(settings)
    storage.put(key, data, content_type="text/plain", sha256=hashlib.sha256(data).hexdigest())
    storage.close()


def test_s3_listens_on_loopback_only_and_its_inner_pages_are_closed(storage_settings: StorageSettings) -> None:
    inner = [
        port for port in range(_port(storage_settings), _port(storage_settings) + 5) if _listens("127.0.0.1", port)
    ]
    assert inner
    with httpx.Client(trust_env=False) as web:
        for port in inner:
            assert not _listens("127.0.0.2", port)  # which whoever binds 0.0.0.0 answers
            for path in ("col/delete?collection=darkroom", "dir/assign", "buckets/darkroom/.started"):
                assert web.get(f"http://127.0.0.1:{port}/{path}").status_code in {400, 401, 403, 404}
    _put(storage_settings, "still/there", b"x")


def test_servers_end_when_their_starter_is_killed(data_dir: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from service.cli.embedded import EmbeddedS3, EmbeddedValkey
        folder = Path(sys.argv[1])
        valkey, s3 = EmbeddedValkey(folder / "valkey"), EmbeddedS3(folder / "s3")
        valkey.start(), s3.start()
        print(valkey.pid, s3.pid, flush=True)
        time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(data_dir)], cwd=REPOSITORY, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == 2
        starter.kill()
    _until(lambda: all(_gone(pid) for pid in pids))
    for again in (EmbeddedValkey(data_dir / "valkey"), EmbeddedS3(data_dir / "s3")):
        again.start()
        again.stop()


def test_child_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = ChildProcess(
        ["/bin/sh", "-c", f"trap '' TERM; sleep 600 & echo $$ $! > {pids}; wait; wait"],
        log_path=tmp_path / "log",
        env={"PATH": "/usr/bin:/bin"},
        grace_s=1,
    )
    _until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    assert child.stop() == -signal.SIGKILL
    _until(lambda: all(_gone(int(pid)) for pid in pids.read_text().split()))


def test_child_is_out_of_reach_of_the_terminal(tmp_path: Path) -> None:
    child = ChildProcess(["/bin/sleep", "600"], log_path=tmp_path / "log", env={})
    try:
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
    finally:
        child.stop()
