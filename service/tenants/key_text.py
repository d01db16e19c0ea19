"""API keys as text: `dk_<id>_<secret>`, shown once.

A slow hash would add nothing: the secret has 160 random bits, so that its SHA-256 cannot be searched.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

_KEY = re.compile(r"dk_(?P<id>[a-z2-7]{12})_(?P<secret>[a-z2-7]{32})")


@dataclass(frozen=True, slots=True)
class PresentedKey:
    """A key as a caller sends it."""

    id: str
    secret: str

    def opens(self, secret_sha256: str) -> bool:
        """Tell whether the secret is the one of this hash, in constant time."""
        return hmac.compare_digest(hash_secret(self.secret), secret_sha256)

    def __repr__(self) -> str:
        return f"PresentedKey(id={self.id!r}, secret=***)"

    def __str__(self) -> str:
        return f"dk_{self.id}_{self.secret}"


def new_key() -> PresentedKey:
    """Draw a key: 60 random bits of id, 160 of secret."""
    return PresentedKey(id=_random_text(12), secret=_random_text(32))


def parse_key(text: str) -> PresentedKey | None:
    """Return the key, or None for anything that does not have its form."""
    found = _KEY.fullmatch(text)
    return PresentedKey(found["id"], found["secret"]) if found else None


def hash_secret(secret: str) -> str:
    """Return what is stored of a secret: its SHA-256, lower-case hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _random_text(length: int) -> str:
    """Return `length` characters of lower-case base32, 5 random bits each."""
    return base64.b32encode(secrets.token_bytes(length)).decode()[:length].lower()
