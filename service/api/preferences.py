"""The `Prefer` header (RFC 7240): `wait=N` and `respond-async`. What is unknown or malformed is ignored, as it asks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: One preference with its parameters, up to the next comma outside quotes.
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_FORM = re.compile(
    r'\s*(?P<name>[!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*(?P<value>"(?:[^"\\]|\\.)*"|[^\s;"]*))?\s*(?:;.*)?',
    re.DOTALL,
)
_SECONDS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a caller would like."""

    #: s; None = it does not say.
    wait_s: int | None = None
    respond_async: bool = False

    def waits(self, cap_s: int, *, default_s: int = 0) -> int:
        """Return how long to hold the reply, s: as asked, at most `cap_s`; `default_s` where nothing is asked."""
        if self.wait_s is not None:
            return min(self.wait_s, cap_s)
        return 0 if self.respond_async else default_s

    def applied(self, waited_s: int, *, finished: bool) -> str | None:
        """Return `Preference-Applied`, or None where no preference made a difference."""
        names = [f"wait={waited_s}"] if self.wait_s is not None else []
        if self.respond_async and not finished:
            names.insert(0, "respond-async")
        return ", ".join(names) or None


def preferences(headers: Iterable[str]) -> Preferences:
    """Read every `Prefer` header of a request; of a preference given twice the first counts."""
    found: dict[str, str] = {}
    for header in headers:
        for text in _PREFERENCE.findall(header):
            form = _FORM.fullmatch(text)
            if form:
                found.setdefault(form["name"].lower(), (form["value"] or "").strip('"'))
    wait = found.get("wait", "")
    return Preferences(int(wait) if _SECONDS.fullmatch(wait) else None, "respond-async" in found)
