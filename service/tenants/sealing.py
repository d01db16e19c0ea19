"""Secrets at rest: encrypted where the operator gives a key, readable to whoever reads Redis where not.

    plain:<text>                               no key was given
    a256gcm:<key name>:<base64 of nonce, ciphertext, tag>

The name of a key is the start of its SHA-256: it tells which key of several opens a text, and nothing about it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_PLAIN = "plain"
_SEALED = "a256gcm"
_NONCE_BYTES = 12


class SealError(Exception):
    """A sealed text cannot be opened; the message says why, and nothing of the text."""


class Sealer:
    """Seals with the first of its keys, opens with any. Without keys it seals nothing, and opens what is plain."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """`keys`: 32 bytes each."""
        self._ciphers = {_key_name(key): AESGCM(key) for key in keys}
        self._first = next(iter(self._ciphers), None)

    def seal(self, text: str, *, context: str) -> str:
        """Return a text as it is stored: it opens in the same `context` only, so that nobody can exchange two."""
        if self._first is None:
            return f"{_PLAIN}:{text}"
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._ciphers[self._first].encrypt(nonce, text.encode(), context.encode())
        return f"{_SEALED}:{self._first}:{base64.b64encode(sealed).decode()}"

    def open(self, stored: str, *, context: str) -> str:
        """Return what was sealed; raises `SealError` for whatever else is stored."""
        form, _, rest = stored.partition(":")
        if form == _PLAIN:
            return rest
        name, _, sealed = rest.partition(":")
        if form != _SEALED:
            msg = "it is damaged"
            raise SealError(msg)
        if name not in self._ciphers:
            msg = "it was encrypted with a key that DARKROOM_WEBHOOK_KEY does not have"
            raise SealError(msg)
        try:
            data = base64.b64decode(sealed, validate=True)
            return self._ciphers[name].decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], context.encode()).decode()
        except (binascii.Error, ValueError, InvalidTag) as err:
            msg = "it is damaged"
            raise SealError(msg) from err

    def is_fresh(self, stored: str) -> bool:
        """Tell whether a text is stored as `seal` would store it now."""
        return stored.startswith(f"{_PLAIN}:" if self._first is None else f"{_SEALED}:{self._first}:")


def _key_name(key: bytes) -> str:
    return hashlib.sha256(b"darkroom webhook key\n" + key).hexdigest()[:12]
