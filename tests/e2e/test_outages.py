"""Redis or S3 away, replies lost, agents paused or told to stop at any moment: every job ends once, nothing stays."""

from __future__ import annotations

import os
import signal
import time
from random import Random

import pytest

from service.jobs.scripts import ScriptName
from tests.e2e.outages import Outpost
from tests.e2e.processes import wait_for


def test_redis_killed_and_started_again_in_the_middle_of_jobs(outpost: Outpost, name: str) -> None:
    outpost.agent(name)
    ids = [outpost.submit("step=0.05") for _ in range(12)]
    outpost.wait_until(ids[2], "succeeded")
    os.kill(outpost.valkey.pid, signal.SIGKILL)
    time.sleep(2)  # the outage itself
    outpost.valkey.start()
    back_s = time.monotonic()
    outpost.ended(ids[3:5])
    assert time.monotonic() - back_s < 3
    assert set(outpost.ended(ids)) == {"succeeded"}
    assert {(outpost.job(job_id).attempt, outpost.job(job_id).losses) for job_id in ids} == {(1, 0)}


def test_after_a_longer_outage_of_redis_bells_are_heard_at_once(outpost: Outpost, name: str) -> None:
    agent = outpost.agent(name)
    outpost.redis_proxy.cut()
    time.sleep(9)  # the outage itself: RQ's own pauses would be 1, 2, 4, 8 s by then
    outpost.redis_proxy.mend()
    back_s = time.monotonic()
    assert outpost.ended([outpost.submit()]) == ["succeeded"]
    assert time.monotonic() - back_s < 3
    assert agent.poll() is None


@pytest.mark.parametrize("script", ["claim", "commit"])
def test_lost_replies_cost_no_attempt_and_commit_nothing_twice(outpost: Outpost, name: str, script: ScriptName) -> None:
    outpost.agent(name)
    lost, metered = outpost.redis_proxy.lost, outpost.images_metered()
    # The client itself tries five times.
    outpost.lose_replies(script, 6)
    job_id = outpost.submit()
    assert outpost.ended([job_id], timeout_s=10) == ["succeeded"]
    wait_for("the client to give up", lambda: outpost.redis_proxy.lost - lost >= 5, timeout_s=10)
    assert outpost.ended([outpost.submit()], timeout_s=10) == ["succeeded"]
    assert (outpost.job(job_id).attempt, outpost.job(job_id).losses) == (1, 0)
    assert outpost.images_metered() - metered == 2
    outpost.check_objects([job_id])


def test_a_paused_agent_is_fenced_and_takes_away_its_own_objects_only(outpost: Outpost, name: str) -> None:
    paused, other = f"{name}-paused", f"{name}-other"
    agent = outpost.agent(paused)
    job_id = outpost.submit("step=0.5")
    outpost.wait_until(job_id, "running")
    agent.send_signal(signal.SIGSTOP)
    rescuer = outpost.agent(other)
    assert outpost.ended([job_id], timeout_s=40) == ["succeeded"]
    rescuer.terminate()
    assert rescuer.wait(10) == 0
    agent.send_signal(signal.SIGCONT)
    # Its engine is free for the next job only when the late one is done with.
    assert outpost.ended([outpost.submit()]) == ["succeeded"]
    assert outpost.job(job_id).losses == 1
    assert not outpost.events("engine_silent", paused)
    outpost.check_objects([job_id])


def test_s3_away_for_a_while(outpost: Outpost, name: str) -> None:
    outpost.agent(name)
    ids = [outpost.submit("step=0.02") for _ in range(12)]
    outpost.wait_until(ids[1], "succeeded")
    outpost.storage_proxy.cut()
    wait_for("an upload that fails", lambda: outpost.events("storage_unavailable", name))
    outpost.storage_proxy.mend()
    assert set(outpost.ended(ids)) == {"succeeded"}
    assert {outpost.job(job_id).attempt for job_id in ids} == {1}
    outpost.check_objects(ids)


def test_agents_told_to_stop_at_any_moment_hand_back_what_they_hold(outpost: Outpost, name: str) -> None:
    moments = Random(2)
    ids: list[str] = []
    for number in range(6):
        agent = outpost.agent(f"{name}-{number}", DARKROOM_DRAIN_S="0.5")
        ids += [outpost.submit("step=0.02") for _ in range(4)] + [outpost.submit("step=0.3")]
        time.sleep(moments.uniform(0, 0.4))
        agent.terminate()
        assert agent.wait(10) == 0
        assert "Traceback" not in outpost.log(f"{name}-{number}")
    outpost.agent(f"{name}-last")
    assert set(outpost.ended(ids)) == {"succeeded"}
    assert {(outpost.job(job_id).attempt, outpost.job(job_id).losses) for job_id in ids} == {(1, 0)}


def test_an_agent_told_to_stop_while_redis_hangs_leaves_in_time(outpost: Outpost, name: str) -> None:
    agent = outpost.agent(name, DARKROOM_DRAIN_S="1")
    os.kill(outpost.valkey.pid, signal.SIGSTOP)
    try:
        agent.terminate()
        assert agent.wait(8) == 1
    finally:
        os.kill(outpost.valkey.pid, signal.SIGCONT)


def test_a_damaged_record_ends_and_the_queue_goes_on(outpost: Outpost, name: str) -> None:
    agent = outpost.agent(name)
    agent.send_signal(signal.SIGSTOP)
    damaged, good = outpost.submit(), outpost.submit()
    outpost.damage(damaged)
    agent.send_signal(signal.SIGCONT)
    assert outpost.ended([damaged, good]) == ["failed", "succeeded"]
