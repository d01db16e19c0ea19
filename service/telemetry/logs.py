"""Events as structured lines on stderr: a name and fields, never a sentence.

    log = structlog.get_logger()
    log.info("generation_accepted", model="shapes", cost=12.0)

Request and job ids are bound at the edge (`service.telemetry.context`) and appear on every line below it. Prompts, keys
and presigned links never appear: call sites do not pass them, and `mask_secrets` catches what slips into a traceback.
"""

from __future__ import annotations

import logging
import re
import sys
from contextlib import suppress
from typing import Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["console", "json"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

#: Fields that no call site should pass; their values are never written.
_PRIVATE_FIELDS = frozenset({"prompt", "negative_prompt", "authorization", "secret", "key", "token", "base64"})

#: An API key, a webhook's secret, a bearer header, the signature of a presigned link, the password in a URL.
_SECRETS = re.compile(
    r"(?P<key>dk_[0-9a-z]+_)[0-9A-Za-z]+"
    r"|(?P<webhook>whsec_)[0-9A-Za-z+/=]+"
    r"|(?P<bearer>[Bb]earer\s+)\S+"
    r"|(?P<query>[?&]X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"']+"
    r"|(?P<login>://[^/\s:@]*:)[^@\s/]+(?=@)"
)


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace private fields, and whatever looks like a secret inside any text, by `***`."""
    for name, value in event.items():
        if name in _PRIVATE_FIELDS:
            event[name] = "***"
        elif isinstance(value, str) and ("_" in value or ":" in value or "earer" in value):
            event[name] = _SECRETS.sub(lambda found: f"{found[found.lastgroup or 0]}***", value)
    return event


class _Stream:
    """A stream that drops what it cannot write: a full disk or a closed pipe must not fail what is being told."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def configure_logging(log_format: LogFormat, level: str) -> None:
    """Send structlog's events and those of the standard library to stderr in one form. Call once per process."""
    stderr = cast("TextIO", _Stream(sys.stderr))
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = [
        structlog.processors.format_exc_info,
        mask_secrets,
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
    ]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries tell their own business at info; theirs is worth a line from warning on.
    root.setLevel(max(_LEVELS[level], logging.WARNING))
