"""The load balancer of the deployment for tests: the real HAProxy with the file that is deployed, and its DNS."""

from __future__ import annotations

import csv
import http.server
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from service.cli.ports import free_ports

CONFIGURATION = Path(__file__).parents[1] / "deploy" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_A_RECORD, _INTERNET = 1, 1


class Names:
    """A DNS server that knows one name, as a container network does: the addresses of a service's replicas."""

    def __init__(self, name: str, addresses: Sequence[str]) -> None:
        self._question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
        self.addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop: an empty datagram says so."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
            caller.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        query, peer = self._socket.recvfrom(4096)
        while query:
            self._socket.sendto(self._reply(query), peer)
            query, peer = self._socket.recvfrom(4096)

    def _reply(self, query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 1
        kind, of_internet = struct.unpack("!HH", query[end : end + 4])
        asked = query[12:end].lower() == self._question and (kind, of_internet) == (_A_RECORD, _INTERNET)
        found = self.addresses if asked else ()
        head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
        answers = b"".join(struct.pack("!HHHIH4s", 0xC00C, 1, 1, 1, 4, socket.inet_aton(each)) for each in found)
        return head + query[12 : end + 4] + answers


class Balancer:
    """A running HAProxy."""

    def __init__(self, url: str, status_url: str, log_path: Path) -> None:
        self.url = url
        self._status_url = status_url
        self._log_path = log_path

    def up(self, backend: str = "ready") -> int:
        """How many gateways of a backend take requests."""
        try:
            rows = csv.DictReader(io.StringIO(httpx.get(f"{self._status_url}/stats;csv").text.removeprefix("# ")))
        except httpx.TransportError:
            return -1
        return sum(
            row["pxname"] == backend and row["svname"].startswith("gateway") and row["status"] == "UP" for row in rows
        )

    def wait_for(self, count: int) -> None:
        """Return when so many gateways are ready."""
        until(lambda: self.up() == count, lambda: f"{self.up()} are ready: {self.log}")

    @property
    def metrics(self) -> str:
        return httpx.get(f"{self._status_url}/metrics").text

    @property
    def log(self) -> str:
        return self._log_path.read_text()


def until(condition: Callable[[], bool], otherwise: Callable[[], str], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)


@contextmanager
def balancer(folder: Path, addresses: Sequence[str], gateway_port: int) -> Iterator[Balancer]:
    """Run HAProxy before the gateways at these addresses, which all listen on `gateway_port`."""
    assert HAPROXY
    names = Names("gateway", addresses)
    public, status = free_ports(2)
    log_path = folder / "haproxy.log"
    environment = {
        "LISTEN_ADDRESS": f"127.0.0.1:{public}",
        "STATUS_ADDRESS": f"127.0.0.1:{status}",
        "DNS_ADDRESS": f"127.0.0.1:{names.port}",
        "GATEWAY_PORT": str(gateway_port),
    }
    with log_path.open("w") as log:
        process = subprocess.Popen([HAPROXY, "-db", "-f", str(CONFIGURATION)], env=environment, stdout=log, stderr=log)
    running = Balancer(f"http://127.0.0.1:{public}", f"http://127.0.0.1:{status}", log_path)
    try:
        until(lambda: process.poll() is not None or running.up() >= 0, lambda: running.log)
        assert process.poll() is None, running.log
        yield running
    finally:
        process.terminate()
        process.wait(timeout=10)
        names.close()


class Origin:
    """An HTTP server in a gateway's place, which does what no gateway would: break off, or stream at a test's pace."""

    def __init__(self, address: str, port: int) -> None:
        self.received: list[str] = []
        self.go_on = threading.Event()
        origin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/stream":
                    origin.stream(self)
                else:
                    origin.answer(self, json.dumps(dict(self.headers)).encode())

            def do_POST(self) -> None:
                origin.received.append(self.path)
                self.rfile.read(int(self.headers["Content-Length"]))
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((address, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stream(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Send an event, and the next one when the test says so."""
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for event in (b"data: 1\n\n", b"data: 2\n\n"):
            request.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            assert self.go_on.wait(30)
        request.wfile.write(b"0\r\n\r\n")

    def answer(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        with suppress(ConnectionError):  # a health check leaves after the status line
            request.send_response(200)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
