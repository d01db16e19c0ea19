"""What lies ahead of the jobs that wait and run: made once a second by one process, read by every gateway.

Seconds count from `made_ms`. All of it is an estimate; nothing depends on it but what callers are told.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.contract.job import Priority

#: s; nobody waits longer than that, for all that is told.
LONGEST_S = 30 * 86_400
#: Beyond it a rate says no more than that a wait has no end.
MOST_OVERTAKING_PER_S = 1000.0

Seconds = Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=2**53)]
#: Place from 1, s to the start, s to the end.
NextJob = tuple[Annotated[int, Field(ge=1)], Seconds | None, Seconds | None]


class _Frozen(BaseModel):
    # What a later version adds is no concern of this one.
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class TenantAhead(_Frozen):
    """One tenant's line in one class."""

    waiting: _Count
    #: (rank in this line, sequence, virtual start) of some of its jobs, ascending; the first and the last among them.
    marks: list[tuple[_Count, _Count, _Number]]
    #: The virtual start of one more job at the end of the line.
    end: _Number
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    #: Jobs that may run at once; None = any number. And those that do.
    cap: _Count | None = None
    running: _Count = 0


class ClassAhead(_Frozen):
    """One class of priority of one pool."""

    #: Virtual time: where a tenant begins that has nothing waiting.
    present: _Number
    tenants: dict[str, TenantAhead]
    #: (virtual start, jobs of the whole pool that go before a job which starts there), ascending; the second never
    #: falls. Two points of one virtual start are a step.
    before: list[tuple[_Number, _Number]]


class ModelPace(_Frozen):
    """How fast a request gets on that asks for nothing but a prompt."""

    #: s of one step of such a request: of one more than run now, and among as many as there is room for.
    joining_s: Seconds
    full_s: Seconds
    #: Rows × px² of such a request, and the s that one more adds to a step.
    px: _Number
    px_s: Seconds


class Overtaking(_Frozen):
    """Jobs that come later and go before those of one class."""

    #: How many in a second, per job that is before one already.
    rate_per_s: Annotated[float, Field(ge=0, le=MOST_OVERTAKING_PER_S, allow_inf_nan=False)]
    #: s for which more are expected.
    for_s: Seconds


class PoolAhead(_Frozen):
    """One pool."""

    #: The last sequence that was given: jobs with a higher one came after this was made.
    sequence: _Count
    #: (place from 1, s to the start, s to the end) of the jobs that start next, by id; None = not known.
    next: dict[str, NextJob]
    #: s to the end of what runs, by id.
    running: dict[str, Seconds]
    #: (jobs before it, s to its start), ascending, and the s that each job beyond the last adds. Empty = not known.
    starts: list[tuple[_Count, Seconds]]
    each_s: Seconds = 0.0
    #: By model, of those that its workers draw and of which something was measured.
    models: dict[str, ModelPace]
    #: Kinds of device of its workers, by which costs of calls are kept.
    devices: list[str] = []
    #: s between the last step's picture and the end.
    after_s: Seconds = 0.0
    #: What was drawn in a second ÷ what the costs of calls say; None where nothing was measured.
    speed: Seconds | None = None
    classes: dict[Priority, ClassAhead]
    #: All other seconds to starts and ends of waiting jobs say what would be if nobody came any more; this, who does.
    overtaking: dict[Priority, Overtaking] = {}


class Forecast(_Frozen):
    """What lies ahead, in all pools."""

    #: By the clock of Redis.
    made_ms: _Count
    pools: dict[str, PoolAhead]
