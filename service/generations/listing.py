"""Listing a caller's generations, newest first."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from service.contract.errors import FieldError, InvalidRequest
from service.contract.job import Job, Status
from service.generations.cursors import CURSOR_MAX_CHARS, Cursors, NotACursor
from service.generations.request import LABELS_MAX
from service.jobs.listing import JobListing

LIMIT_DEFAULT = 20
LIMIT_MAX = 100

_LABEL = "label."
_NO_CURSOR = "must be the next_cursor of an earlier page"
_NUMBER = re.compile(r"[1-9][0-9]{0,2}")


@dataclass(frozen=True, slots=True)
class ListingQuery:
    """Which generations, and how many."""

    limit: int = LIMIT_DEFAULT
    cursor: str | None = None
    status: Status | None = None
    labels: dict[str, str] = field(default_factory=dict)


def listing_query(parameters: Iterable[tuple[str, str]]) -> ListingQuery:
    """Read query parameters; raises `InvalidRequest` with everything that is wrong: a typo must not list all."""
    plain: dict[str, str] = {}
    labels: dict[str, str] = {}
    errors: list[FieldError] = []
    for name, value in parameters:
        target = labels if name.startswith(_LABEL) else plain
        key = name.removeprefix(_LABEL) if target is labels else name
        if target is plain and name not in {"limit", "cursor", "status"}:
            errors.append(
                FieldError(name[:64], "is not a parameter here; there are limit, cursor, status, label.<name>")
            )
        elif key in target:
            errors.append(FieldError(name[:64], "is given twice"))
        target[key] = value
    limit = plain.get("limit", str(LIMIT_DEFAULT))
    if not _NUMBER.fullmatch(limit) or int(limit) > LIMIT_MAX:
        errors.append(FieldError("limit", f"must be a whole number, 1 to {LIMIT_MAX}"))
    status = plain.get("status")
    if status is not None and status not in set(Status):
        errors.append(FieldError("status", f"must be one of {', '.join(Status)}"))
    cursor = plain.get("cursor")
    if cursor is not None and not 0 < len(cursor) <= CURSOR_MAX_CHARS:
        errors.append(FieldError("cursor", _NO_CURSOR))
    if len(labels) > LABELS_MAX:
        errors.append(FieldError(_LABEL, f"at most {LABELS_MAX} labels can be asked for"))
    if errors:
        raise InvalidRequest(errors[:32])
    return ListingQuery(int(limit), cursor, Status(status) if status else None, labels)


@dataclass(frozen=True, slots=True)
class GenerationsListed:
    """One page."""

    jobs: list[Job]
    #: Opaque; None on the last page.
    next_cursor: str | None


class ListGenerations:
    """The use case."""

    def __init__(self, *, listing: JobListing, cursors: Cursors) -> None:
        self._listing = listing
        self._cursors = cursors

    async def page(self, tenant: str, query: ListingQuery) -> GenerationsListed:
        """Return one page; raises `InvalidRequest` for a cursor that is not ours, `Unavailable`."""
        after = None
        if query.cursor is not None:
            try:
                after = await self._cursors.open(tenant, query.cursor)
            except NotACursor:
                raise InvalidRequest([FieldError("cursor", _NO_CURSOR)]) from None
        page = await self._listing.page(
            tenant, limit=query.limit, after=after, status=query.status, labels=query.labels
        )
        return GenerationsListed(page.jobs, page.next and await self._cursors.seal(tenant, page.next))
