"""Prompts that were encoded before, and need not be again."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass

import torch

from service.contract.generation import GenerationSpec
from worker.pipelines.stages import Embeddings

#: Of one model, on its device. A prompt of SDXL takes 0.6 MB with its negative one, one of FLUX 4 MB.
_MOST_BYTES = 256 * 2**20

#: What a request says that its embeddings do not depend on. Whatever is not named here is taken to matter.
_WITHOUT_MEANING = {
    "width",
    "height",
    "steps",
    "guidance_rescale",
    "eta",
    "scheduler",
    "sigmas",
    "seed",
    "num_images",
    "deterministic",
    "image",
    "mask",
    "strength",
    "output",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    embeddings: Embeddings
    is_exact: bool
    size_bytes: int


class EmbeddingCache:
    """Encoded prompts of one model; the one that was not asked for the longest goes first.

    Its keys are digests with a secret of this process: prompts are not kept, nor can one be guessed from its key.
    """

    def __init__(self, most: int, *, most_bytes: int = _MOST_BYTES) -> None:
        """`most`: entries; 0 keeps none."""
        self._most = most
        self._most_bytes = most_bytes
        self._secret = os.urandom(32)
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, spec: GenerationSpec, *, exact: bool) -> Embeddings | None:
        """Return the embeddings of a request's prompts; None where they must be encoded.

        `exact`: only those that were encoded alone, to the bit as diffusers would; others differ by rounding.
        """
        key = self._key(spec)
        entry = self._entries.get(key)
        if entry is None or (exact and not entry.is_exact):
            return None
        self._entries.move_to_end(key)
        return dict(entry.embeddings)

    def put(self, spec: GenerationSpec, embeddings: Embeddings, *, exact: bool) -> None:
        """Keep what was encoded; `exact`: alone. It never takes the place of what is exact where it is not."""
        key = self._key(spec)
        known = self._entries.get(key)
        if not self._most or (known is not None and known.is_exact):
            return
        # Rows of a shared call are views, and would keep all of it.
        own = {name: None if rows is None else rows.clone() for name, rows in embeddings.items()}
        entry = _Entry(own, exact, sum(_bytes(rows) for rows in own.values()))
        self._forget(key)
        self._entries[key] = entry
        self._size_bytes += entry.size_bytes
        while len(self._entries) > self._most or self._size_bytes > self._most_bytes:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size_bytes -= entry.size_bytes

    def _key(self, spec: GenerationSpec) -> bytes:
        said = spec.model_dump_json(exclude=_WITHOUT_MEANING)
        return hashlib.blake2b(said.encode(), key=self._secret, digest_size=32).digest()


def _bytes(rows: torch.Tensor | None) -> int:
    return 0 if rows is None else rows.numel() * rows.element_size()
