"""The `Accept` header of a creating call: the resource as JSON, or the picture itself."""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.api.problems import NotAcceptable
from service.contract.generation import CONTENT_TYPES, ImageFormat

_QUALITY = re.compile(r"\s*q\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*", re.IGNORECASE)
_JSON = "application/json"
#: In the order in which a wildcard takes them.
_FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")


def accepted_formats(headers: Iterable[str]) -> tuple[ImageFormat, ...]:
    """Return the picture formats that a caller wants as the reply itself, best first; none = it wants JSON.

    JSON is the answer to `*/*` and to no header at all. Raises `NotAcceptable` where neither fits.
    """
    ranges = _ranges(",".join(headers))
    if not ranges:
        return ()
    json_quality, named = _quality(ranges, _JSON)
    formats: list[tuple[float, ImageFormat]] = []
    for name in _FORMATS:
        quality, how = _quality(ranges, CONTENT_TYPES[name])
        # `*/*` alone asks for no picture.
        if quality > 0 and how != "*/*":
            formats.append((quality, name))
    best = max((quality for quality, _ in formats), default=0.0)
    if formats and (best > json_quality or (best == json_quality and named == "*/*")):
        return tuple(name for _, name in sorted(formats, key=lambda each: -each[0]))
    if json_quality > 0:
        return ()
    raise NotAcceptable(f"This can answer with {_JSON} or {', '.join(CONTENT_TYPES[name] for name in _FORMATS)}.")


def _ranges(header: str) -> dict[str, float]:
    """Return the quality of each media range; one that is malformed is left out."""
    ranges: dict[str, float] = {}
    for part in header.split(","):
        media, _, parameters = part.partition(";")
        media = media.strip().lower()
        if not media:
            continue
        quality = 1.0
        for parameter in parameters.split(";"):
            found = _QUALITY.fullmatch(parameter)
            if found:
                quality = float(found[1])
        ranges[media] = max(quality, ranges.get(media, 0.0))
    return ranges


def _quality(ranges: dict[str, float], media: str) -> tuple[float, str]:
    """Return the quality of a media type, and which range gave it: the most specific one counts (RFC 9110 §12.5.1)."""
    for name in (media, f"{media.partition('/')[0]}/*", "*/*"):
        if name in ranges:
            return ranges[name], name
    return 0.0, ""
