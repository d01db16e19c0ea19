"""Settings of uploads: what callers may send straight to the storage, and from where."""

from __future__ import annotations

import re

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[1-9][0-9]{0,4})?")


class UploadSettings(BaseSettings):
    """Files that wait for their first use, and web pages that may send them."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_UPLOAD_", env_ignore_empty=True, frozen=True)

    #: s; an upload is erased when it was not used for so long. A day: people come back to a page tomorrow.
    ttl_s: int = Field(default=86_400, ge=60, le=30 * 86_400)
    #: Uploads that a tenant may have before their first use; beyond, 429.
    limit: int = Field(default=500, ge=1, le=10_000)
    #: Bytes of these together.
    limit_bytes: int = Field(default=4 << 30, ge=1024)
    #: Origins of web pages that may upload, and read by link, separated by commas: written into the bucket's CORS rules
    #: at the start. Empty = the rules are left as they are.
    origins: str = ""

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        if not all(_ORIGIN.fullmatch(each.strip()) for each in text.split(",") if text):
            msg = "must look like https://app.example, several separated by commas, without a path"
            raise ValueError(msg)
        return text

    @property
    def origin_list(self) -> tuple[str, ...]:
        """The origins, each as browsers send it."""
        return tuple(each.strip().lower() for each in self.origins.split(",") if each.strip())
