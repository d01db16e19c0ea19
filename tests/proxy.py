"""A TCP proxy that loses what it is told to lose: between the service and its Redis or S3."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

_CHUNK_BYTES = 65_536


class Proxy:
    """Listens on a port of its own and forwards to `target_port`, on the loopback address. A context manager."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._cut = False
        self._marks: dict[bytes, int] = {}
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        self._cut = True
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            _reset(*pair)

    def mend(self) -> None:
        """Forward again."""
        self._cut = False

    def lose_replies(self, mark: bytes, times: int) -> None:
        """Break the connection after the server has executed a request that holds `mark`, `times` times."""
        with self._lock:
            self._marks[mark] = times

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                _reset(client)
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                _reset(client)
                continue
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            losing = threading.Event()
            threading.Thread(target=self._forward, args=(pair, losing), daemon=True).start()
            threading.Thread(target=self._return, args=(pair, losing), daemon=True).start()

    def _forward(self, pair: tuple[socket.socket, socket.socket], losing: threading.Event) -> None:
        client, server = pair
        with suppress(OSError):
            while data := client.recv(_CHUNK_BYTES):
                if self._is_to_be_lost(data):
                    losing.set()
                server.sendall(data)
        self._end(pair)

    def _return(self, pair: tuple[socket.socket, socket.socket], losing: threading.Event) -> None:
        client, server = pair
        with suppress(OSError):
            while data := server.recv(_CHUNK_BYTES):
                if losing.is_set():
                    self.lost += 1
                    break
                client.sendall(data)
        self._end(pair)

    def _is_to_be_lost(self, data: bytes) -> bool:
        with self._lock:
            for mark, left in self._marks.items():
                if left and mark in data:
                    self._marks[mark] = left - 1
                    return True
        return False

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        _reset(*pair)


def _reset(*sockets: socket.socket) -> None:
    """Close at once, with RST: what is still on its way is lost."""
    for each in sockets:
        with suppress(OSError):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.shutdown(socket.SHUT_RDWR)
        each.close()
