"""What an agent tells of itself while it lives."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class WorkerRecord(BaseModel):
    """One agent and its engine child. Kept in Redis with a TTL of a few beats."""

    model_config = ConfigDict(frozen=True)

    #: Random, new at every start.
    agent_id: str
    pool: str
    #: `cpu`, `cuda:0`, `mps`, …; empty until the engine child has said.
    device: str = ""
    #: The kind of device, by which costs of calls are kept.
    device_name: str = ""
    #: Ids of models in memory.
    warm: tuple[str, ...] = ()
    #: Those on their way there.
    loading: tuple[str, ...] = ()
    #: Those that it reads when they are wanted.
    cold: tuple[str, ...] = ()
    #: Executions it may hold at once.
    capacity: int = 0
    started_ms: int = 0
