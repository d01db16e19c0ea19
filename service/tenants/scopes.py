"""What a key may do: a few scopes, so that a key that leaks opens no more than its holder needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

Scope = Literal["generate", "read", "webhooks"]

#: In words, for people; `service.api.access` says which operation asks for which.
SCOPES: Final[dict[Scope, str]] = {
    "generate": "create, cancel and erase generations, upload pictures for them",
    "read": "look at generations, pictures, models and usage",
    "webhooks": "see and change what webhooks are sent to, and what they are signed with",
}

ALL_SCOPES: Final[frozenset[Scope]] = frozenset(get_args(Scope))


def scopes_text(scopes: Iterable[Scope]) -> str:
    """Return scopes as a key's record has them: words, always in the same order."""
    return " ".join(sorted(set(scopes)))


def scopes_of(text: str | None) -> frozenset[Scope] | None:
    """Return the scopes that a key's record names; None = the record has no such field, and the key every scope.

    Words that are no scope are left out: a later version may have more of them.
    """
    if text is None:
        return None
    return ALL_SCOPES & set(text.split())
