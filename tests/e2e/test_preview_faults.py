"""Previews while engines die and Redis answers late: they go with what they show, and no job waits for one."""

from __future__ import annotations

import os
import signal

from service.jobs.keys import key
from tests.e2e.outages import Outpost
from tests.e2e.processes import wait_for


def is_shown(outpost: Outpost, job_id: str) -> bool:
    return bool(outpost.redis.exists(key("preview", job_id)))


def test_a_preview_goes_with_its_engine_and_a_suspect_has_none(outpost: Outpost, name: str) -> None:
    agent = outpost.agent(name)
    job_id = outpost.submit("preview step=0.1", steps=40)
    wait_for("a preview", lambda: is_shown(outpost, job_id))
    assert outpost.job(job_id).previewed
    os.kill(outpost.service.engine_of(agent), signal.SIGKILL)
    wait_for("the second attempt", lambda: outpost.job(job_id).attempt == 2)

    def has_drawn() -> bool:
        assert not is_shown(outpost, job_id)
        return outpost.job(job_id).ended

    wait_for("the end", has_drawn)
    job = outpost.job(job_id)
    assert (job.status, job.suspect, job.previewed) == ("succeeded", True, False)


def test_an_agent_that_is_told_so_asks_for_no_previews(outpost: Outpost, name: str) -> None:
    outpost.agent(name, DARKROOM_PREVIEW_S="0")
    job_id = outpost.submit("preview step=0.02", steps=50)

    def has_drawn() -> bool:
        assert not is_shown(outpost, job_id)
        return outpost.job(job_id).ended

    wait_for("the end", has_drawn, every_s=0.02)
    assert outpost.status(job_id) == "succeeded"


def test_a_redis_that_answers_no_preview_keeps_no_job_from_its_end(outpost: Outpost, name: str) -> None:
    outpost.agent(name)
    outpost.lose_replies("preview", 4)
    job_ids = [outpost.submit("preview step=0.02", steps=20) for _ in range(3)]
    assert outpost.ended(job_ids) == ["succeeded"] * 3
    assert [outpost.job(job_id).losses for job_id in job_ids] == [0, 0, 0]
    assert not any(is_shown(outpost, job_id) for job_id in job_ids)
