"""Commands that work on Redis itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from service.cli.failure import CommandFailed

if TYPE_CHECKING:
    from redis import Redis


@contextlib.contextmanager
def opened_redis() -> Iterator[Redis]:
    """Open the Redis of the environment; whatever goes wrong with it is one line."""
    from redis.exceptions import RedisError  # noqa: PLC0415 - a command imports when it runs

    from service.cli.configuration import read_configuration  # noqa: PLC0415
    from service.contract.errors import DarkroomError  # noqa: PLC0415
    from service.jobs.connection import connect  # noqa: PLC0415
    from service.settings.groups import RedisSettings  # noqa: PLC0415

    client = connect(read_configuration(RedisSettings))
    try:
        yield client
    except DarkroomError as err:
        raise CommandFailed(err.message[:1].upper() + err.message[1:] + ".") from err
    except RedisError as err:
        msg = f"Redis does not answer as it should ({err}); DARKROOM_REDIS_URL says which one is asked."
        raise CommandFailed(msg) from err
    finally:
        client.close()
