"""uvicorn's HTTP protocol with limits that it does not have: on request heads, and on peers that stall.

uvicorn ends a connection that is idle between two requests, but forgets to as soon as one byte comes, and it waits for
a reader for ever. So a peer could hold connections, and replies in memory, for a byte now and then.
"""

from __future__ import annotations

from asyncio import Transport
from asyncio.events import TimerHandle

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.problems import problem_response
from service.contract.errors import MalformedRequest
from service.telemetry.context import request_id_from

#: Bytes of request line and headers; nginx and h11 have similar ones.
MAX_HEAD_BYTES = 64 * 1024


class GuardedHttpProtocol(HttpToolsProtocol):
    """A connection whose request heads are bounded in bytes (to within one read), and whose peer has to go on."""

    #: s for a whole head to arrive, and for the rest of a body whose request is answered already.
    arrival_timeout_s = 30.0
    #: s in which a peer must take something of what waits for it.
    reader_timeout_s = 30.0

    _in_head = False
    _head_bytes = 0
    #: Requests whose reply is not complete.
    _unanswered = 0
    _arrival: TimerHandle | None = None
    _reader: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._await_arrival()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_arrival()
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; give up on a head that goes on and on."""
        went_on = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._unanswered and self.timeout_keep_alive_task is None:
            # Part of a head, the rest of a body that nobody reads, or blank lines: whatever it is, it has to end.
            self._await_arrival()
        if went_on and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"The request line and headers may have at most {MAX_HEAD_BYTES} bytes.")

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the form of every other refusal, and close."""
        request_id = request_id_from(None)
        response = problem_response(MalformedRequest(msg), request_id)
        response.headers["X-Request-Id"] = request_id
        response.headers["Connection"] = "close"
        head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head + b"\r\n" + bytes(response.body))
        self.transport.close()
        self._watch_reader()

    def pause_writing(self) -> None:
        """Note that the peer is slower than the reply."""
        super().pause_writing()
        self._watch_reader()

    # ── what the parser and the app tell ──────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._in_head = True
        self._head_bytes = 0
        self._await_arrival()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that the head is whole. From here the body has its own limit of time, where it is read."""
        self._in_head = False
        self._unanswered += 1
        self._stop_arrival()
        self._unset_keepalive_if_required()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the body is whole; if its request is answered already, the connection is idle again from here."""
        super().on_message_complete()
        if not self._unanswered:
            self._stop_arrival()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Note that a reply is written, if not yet taken."""
        self._unanswered -= 1
        super().on_response_complete()
        self._watch_reader()

    # ── the two limits ────────────────────────────────────────────────────────────────────────────────────────────────

    def _await_arrival(self) -> None:
        """Close in `arrival_timeout_s`; what comes meanwhile does not put it off."""
        if self._arrival is None:
            self._arrival = self.loop.call_later(self.arrival_timeout_s, self._arrival_timed_out)

    def _stop_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _arrival_timed_out(self) -> None:
        self._arrival = None
        self.transport.close()

    def _watch_reader(self) -> None:
        """Look again and again whether the peer takes what waits for it, until it has taken all."""
        waiting_bytes = self.transport.get_write_buffer_size()
        if waiting_bytes and self._reader is None:
            self._reader = self.loop.call_later(self.reader_timeout_s, self._check_reader, waiting_bytes)

    def _check_reader(self, waited_bytes: int) -> None:
        self._reader = None
        if self.transport.get_write_buffer_size() >= waited_bytes:
            self.transport.abort()
        else:
            self._watch_reader()
