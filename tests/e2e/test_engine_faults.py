"""An engine child that dies, hangs, lies or holds no model: its jobs end as they should, and other jobs go on."""

from __future__ import annotations

import os
import signal

from tests.e2e.outages import Outpost
from tests.e2e.processes import wait_for


def error_of(outpost: Outpost, job_id: str) -> str:
    error = outpost.job(job_id).error
    assert error is not None
    return error.code


def test_a_job_under_which_every_engine_dies_ends_as_poison_and_others_are_not_held_up(
    outpost: Outpost, name: str
) -> None:
    outpost.agent(name)
    poison = [outpost.submit("crash") for _ in range(3)]
    sound = [outpost.submit() for _ in range(9)]
    # Nine deaths: with pauses that doubled at each, the last picture took minutes.
    assert outpost.ended([*poison, *sound], timeout_s=25) == ["failed"] * 3 + ["succeeded"] * 9
    assert {error_of(outpost, job_id) for job_id in poison} == {"poison"}


def test_an_engine_that_speaks_nonsense_is_replaced(outpost: Outpost, name: str) -> None:
    outpost.agent(name)
    bad, good = outpost.submit("nonsense"), outpost.submit()
    assert outpost.ended([bad, good]) == ["failed", "succeeded"]
    assert error_of(outpost, bad) == "poison"


def test_nothing_succeeds_without_its_pictures(outpost: Outpost, name: str) -> None:
    outpost.agent(name)
    job_id = outpost.submit("omit")
    assert outpost.ended([job_id]) == ["failed"]
    assert error_of(outpost, job_id) == "internal"


def test_an_engine_that_hangs_in_a_step_is_killed_and_so_in_the_end_is_its_job(outpost: Outpost, name: str) -> None:
    outpost.agent(name, DARKROOM_PATIENCE_S="1")
    hanging, good = outpost.submit("hang"), outpost.submit()
    assert outpost.ended([hanging, good]) == ["failed", "succeeded"]
    assert error_of(outpost, hanging) == "poison"
    assert len(outpost.events("engine_silent", name)) == 3


def test_an_engine_that_draws_for_another_is_not_taken_for_hung(outpost: Outpost, name: str) -> None:
    """The second hears nothing while the first is drawn, for longer than it would wait for a silent engine."""
    outpost.agent(name, DARKROOM_PATIENCE_S="1", DARKROOM_ENGINE_CAPACITY="2")
    # Of another size: its steps were never measured, so only the patience of one second is known.
    both = [outpost.submit("step=0.4", steps=8), outpost.submit(side_px=128)]
    assert outpost.ended(both) == ["succeeded"] * 2
    assert outpost.events("engine_silent", name) == []
    assert [outpost.job(job_id).losses for job_id in both] == [0, 0]


def test_an_engine_that_stopped_reading_blocks_neither_its_agent_nor_its_job(outpost: Outpost, name: str) -> None:
    agent = outpost.agent(name, DARKROOM_PATIENCE_S="2")
    os.kill(outpost.service.engine_of(agent), signal.SIGSTOP)
    # 192 KiB for a pipe that holds 64.
    job_id = outpost.submit(image=True, side_px=256)
    assert outpost.ended([job_id], timeout_s=20) == ["succeeded"]
    assert outpost.job(job_id).losses == 0


def test_an_agent_whose_engine_hangs_still_drains(outpost: Outpost, name: str) -> None:
    agent = outpost.agent(name, DARKROOM_DRAIN_S="1")
    os.kill(outpost.service.engine_of(agent), signal.SIGSTOP)
    job_id = outpost.submit(image=True, side_px=256)
    outpost.wait_until(job_id, "running")
    agent.terminate()
    assert agent.wait(15) == 0
    job = outpost.job(job_id)
    assert (job.status, job.attempt, job.losses) == ("queued", 0, 0)
    outpost.agent(f"{name}-next")
    assert outpost.ended([job_id]) == ["succeeded"]


def test_a_child_without_models_claims_nothing_and_is_replaced(outpost: Outpost, name: str) -> None:
    agent = outpost.agent(name)
    broken = outpost.model / "broken"
    broken.touch()
    os.kill(outpost.service.engine_of(agent), signal.SIGKILL)
    wait_for("a load that fails", lambda: outpost.events("model_failed", name))
    job_id = outpost.submit()
    wait_for("another try", lambda: len(outpost.events("model_failed", name)) > 1)
    assert outpost.status(job_id) == "queued"
    broken.unlink()
    assert outpost.ended([job_id]) == ["succeeded"]


def test_a_load_that_never_ends_is_ended(outpost: Outpost, name: str) -> None:
    stuck = outpost.model / "stuck"
    stuck.touch()
    outpost.service.agent(name, DARKROOM_LOAD_S="1")
    wait_for("the kill", lambda: outpost.events("engine_killed", name))
    stuck.unlink()
    job_id = outpost.submit()
    assert outpost.ended([job_id]) == ["succeeded"]
