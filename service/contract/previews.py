"""What a preview may be: a small WebP picture, kept for a short time. Held to by whoever makes, keeps or shows one."""

from __future__ import annotations

#: px; the longest side.
PREVIEW_SIDE_PX = 256
#: Bytes of the file.
PREVIEW_BYTES = 32_768
#: ms that one is kept where none follows: slow steps may be a minute apart.
PREVIEW_MS = 120_000
