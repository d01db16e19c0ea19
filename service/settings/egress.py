"""What processes that call callers' URLs read from their environment: gateways for pictures, senders for webhooks."""

from __future__ import annotations

import re
import ssl
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_NETWORKS_FORM = "must be networks such as 10.1.0.0/16,fd00:1::/48, separated by commas"
_PORTS_FORM = "must be ports from 1 to 65535, separated by commas"
_CA_FORM = "must be a file of certificates in PEM that this process can read"
_PROXY_FORM = "must look like http://proxy.example:3128 or https://user:password@proxy.example:3128"


class EgressSettings(BaseSettings):
    """Which URLs of callers are called."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_EGRESS_", env_ignore_empty=True, frozen=True)

    #: `http://` too. Off: what is fetched could be read and changed on the way.
    http: bool = False
    #: Networks inside that may be called all the same, for receivers or pictures of one's own.
    networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    #: Ports besides 443 and 80.
    ports: Annotated[tuple[int, ...], NoDecode] = ()
    #: A proxy that makes these connections. Names are then its to look up and to refuse.
    proxy: SecretStr | None = None
    #: File of certificates (PEM) that are believed besides the public ones.
    ca_file: Path | None = None

    @field_validator("networks", mode="before")
    @classmethod
    def _read_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(ip_network(each.strip()) for each in value.split(","))
        except ValueError:
            raise ValueError(_NETWORKS_FORM) from None

    @field_validator("ports", mode="before")
    @classmethod
    def _read_ports(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        texts = [each.strip() for each in value.split(",")]
        if not all(re.fullmatch(r"[1-9][0-9]{0,4}", each) and int(each) <= 65_535 for each in texts):
            raise ValueError(_PORTS_FORM)
        return tuple(int(each) for each in texts)

    @field_validator("proxy")
    @classmethod
    def _is_of_a_proxy(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return value
        try:
            parts = urlsplit(value.get_secret_value())
            sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise ValueError(_PROXY_FORM)
        return value

    @field_validator("ca_file")
    @classmethod
    def _holds_certificates(cls, value: Path | None) -> Path | None:
        try:
            ssl.create_default_context(cafile=value)
        except OSError:
            raise ValueError(_CA_FORM) from None
        return value


class FetchSettings(BaseSettings):
    """What fetching input pictures by URL may cost a gateway."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_FETCH_", env_ignore_empty=True, frozen=True)

    #: s for a picture to come, redirects and all, and at most as long before for a turn. Callers wait meanwhile.
    timeout_s: float = Field(default=10.0, gt=0, le=120)
    #: Pictures fetched at once in this process.
    limit: int = Field(default=16, ge=1, le=1000)
    #: Of these, of one tenant: its slow servers hold up nobody else.
    tenant_limit: int = Field(default=4, ge=1, le=1000)
    #: Bytes of fetched pictures in memory until they are stored; beyond, 503.
    budget_bytes: int = Field(default=512 << 20, ge=1 << 20)
