"""The contract's own code: framing, transitions, event ids, the tables that go into Lua."""

from __future__ import annotations

import io
import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.engine import FROM_ENGINE, TO_ENGINE, Cancel, FromEngine, Refused, StepDone, ToEngine
from service.contract.errors import RETRYABLE_FAILURES, FailureCode
from service.contract.events import event_id
from service.contract.framing import MAX_HEADER_BYTES, FramingError, read_frame, write_frame
from service.contract.job import TERMINAL, TRANSITIONS, IllegalTransition, Status, transition
from service.contract.schedulers import ALIASES, SCHEDULERS
from service.jobs.commands import registered_models
from service.jobs.scripts import _lua
from tests.gateway import SHAPES


@given(st.text(max_size=200), st.lists(st.binary(max_size=300), max_size=4))
def test_a_frame_comes_out_as_it_went_in(text: str, buffers: list[bytes]) -> None:
    text = text.encode("utf-8", "replace").decode()
    stream = io.BytesIO()
    message = Refused(execution_id="e", code=FailureCode.INTERNAL, message=text)
    write_frame(stream, message, buffers)
    write_frame(stream, StepDone(execution_id="e", step=1, steps=2))
    stream.seek(0)
    assert read_frame(stream, FROM_ENGINE) == (message, buffers)
    assert read_frame(stream, FROM_ENGINE) == (StepDone(execution_id="e", step=1, steps=2), [])
    assert read_frame(stream, FROM_ENGINE) is None


@given(st.data())
def test_a_frame_that_is_cut_anywhere_is_an_error_and_never_a_message(data: st.DataObject) -> None:
    stream = io.BytesIO()
    write_frame(stream, Cancel(execution_id="e"), [b"12345"])
    whole = stream.getvalue()
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(FramingError):
        read_frame(io.BytesIO(whole[:cut]), TO_ENGINE)


@given(st.binary(min_size=1, max_size=200))
def test_noise_is_an_error_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(FramingError):
        read_frame(io.BytesIO(noise), TO_ENGINE)


def test_a_header_or_buffer_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(FramingError, match="over the limit"):
        read_frame(io.BytesIO((MAX_HEADER_BYTES + 1).to_bytes(4, "big")), TO_ENGINE)
    header = b'{"message": {"type": "cancel", "execution_id": "e"}, "buffers": [99999999999]}'
    with pytest.raises(FramingError, match="over the limit"):
        read_frame(io.BytesIO(len(header).to_bytes(4, "big") + header), TO_ENGINE)


def test_every_message_type_is_named_once() -> None:
    names = [
        get_args(cls.model_fields["type"].annotation)[0] for union in (ToEngine, FromEngine) for cls in _members(union)
    ]
    assert len(names) == len(set(names))


def _members(union: object) -> tuple[type, ...]:
    return get_args(get_args(union)[0])


def test_transition_follows_the_table() -> None:
    for current in Status:
        for target in Status:
            if target in TRANSITIONS[current]:
                assert transition(current, target) is target
            else:
                with pytest.raises(IllegalTransition):
                    transition(current, target)


def test_every_status_is_reached_and_terminal_ones_are_ends() -> None:
    assert {target for targets in TRANSITIONS.values() for target in targets} == set(Status)
    assert {status for status in Status if not TRANSITIONS[status]} == TERMINAL


def test_an_event_has_one_id_however_often_it_is_told() -> None:
    assert event_id("gen_1", "generation.succeeded") == "evt_gen_1_succeeded"


def test_aliases_point_at_schedulers_and_hide_none() -> None:
    assert set(ALIASES.values()) <= set(SCHEDULERS)
    assert not set(ALIASES) & set(SCHEDULERS)


def test_failures_that_a_repetition_cannot_mend_are_not_called_retryable() -> None:
    permanent = {
        FailureCode.INVALID_REQUEST,
        FailureCode.INVALID_INPUT,
        FailureCode.PROMPT_TOO_LONG,
        FailureCode.POISON,
    }
    assert not permanent & RETRYABLE_FAILURES


def test_tables_become_lua_literals() -> None:
    assert _lua({"a": [1, True, "it's \\"]}) == "{['a'] = {1, true, 'it\\'s \\\\'}}"
    with pytest.raises(TypeError):
        _lua(1.5)


def test_models_of_earlier_and_later_workers_stay_in_sight_of_a_gateway() -> None:
    card = json.loads(SHAPES.model_dump_json())
    since = {"step_ranges", "execution", "unused_fields", "rescaled_tasks"}
    earlier = {name: value for name, value in card.items() if name not in since}
    later = card | {"limits": card["limits"] | {"max_frames": 1}, "frames": True}
    record = {"agent_id": "a", "pool": "default", "warm": [SHAPES.id], "mood": "good"}
    for told in (earlier, later):
        (model,) = registered_models({SHAPES.id: json.dumps(told)}, [json.dumps(record)])
        assert (model.card, model.warm) == (SHAPES, 1)
