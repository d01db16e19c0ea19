"""The client of gateways packs its commands natively: what goes over the wire is what redis-py's own packing sends."""

from __future__ import annotations

import pytest
from pydantic import SecretStr
from redis.asyncio import Connection

from service.jobs.connection import connect_async
from service.settings.groups import RedisSettings

URLS = ["redis://127.0.0.1:6379/0", "rediss://127.0.0.1:6379/0", "unix:///run/valkey.sock"]

COMMANDS = [
    ("EVALSHA", "a" * 40, 0, "", 1_700_000_000_000, "gen_1", b"\x00\xff"),
    ("HSET", "key", "prompt", "ein großer roter Kreis 🟥\r\n$5\r\nHELLO"),
    ("ZADD", "key", 0.1 + 0.2, "member", -1.5e300, "other", 1e22, "third"),
    ("SCRIPT LOAD", "return 1"),
    ("GETRANGE", "key", 0, 2**53),
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_goes_over_the_wire_as_redis_py_sends_it(url: str, command: tuple[str, ...]) -> None:
    pool = connect_async(RedisSettings(url=SecretStr(url))).connection_pool
    packed = pool.make_connection().pack_command(*command)
    assert b"".join(packed) == b"".join(Connection().pack_command(*command))
    assert len(packed) == 1
