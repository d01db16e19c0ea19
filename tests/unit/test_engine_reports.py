"""An engine tells what calls cost: soon, not often, and in an order that loses nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from service.contract.costs import MAX_MEASURED, MeasuredCost
from service.contract.engine import Finished, Measured, Remember
from tests.clock import Clock
from tests.costs import cost, label
from tests.engine_child import EngineChild
from tests.models import tiny_model
from tests.tiny_requests import tiny_request
from worker.engine.device import device_name
from worker.engine.ledger import CostReports, Ledger


def test_a_first_cost_is_told_at_once_and_those_after_it_some_seconds_later() -> None:
    ledger, clock, told = Ledger(), Clock(1000), list[Measured]()
    reports = CostReports(ledger, told.append, clock)
    assert reports.due_in_s() is None
    reports.tell()
    assert told == []
    ledger.measured(label(), 2, 0.1, None)
    assert reports.due_in_s() == 0.0
    reports.tell()
    assert reports.due_in_s() is None
    ledger.measured(label(), 2, 0.1, None)
    reports.tell()
    assert len(told) == 1
    due_s = reports.due_in_s()
    assert due_s is not None
    assert 1 < due_s < 10
    clock.now_s += due_s
    assert reports.due_in_s() == 0.0
    reports.tell()
    assert [report.costs[0].calls for report in told] == [1, 1]


def test_what_does_not_fit_into_one_report_is_told_in_the_next() -> None:
    ledger, clock, told = Ledger(), Clock(1000), list[Measured]()
    reports = CostReports(ledger, told.append, clock)
    for number in range(MAX_MEASURED + 5):
        ledger.measured(label(width_px=number // 64), 1 + number % 64, 0.1, None)
    while (due_s := reports.due_in_s()) is not None:
        clock.now_s += due_s
        reports.tell()
    assert [len(report.costs) for report in told] == [MAX_MEASURED, 5]


@pytest.fixture(scope="module")
def child() -> Iterator[EngineChild]:
    with EngineChild() as child:
        assert child.hello().device_name == _name_with_one_thread()
        yield child


def _name_with_one_thread() -> str:
    script = "import torch; torch.set_num_threads(1); from worker.engine.device import device_name; "
    script += "print(device_name(torch.device('cpu')))"
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


def test_a_cpu_is_named_by_its_processor_and_the_threads_that_are_used() -> None:
    name = device_name(torch.device("cpu"))
    assert name.startswith("cpu: ")
    assert name.endswith(f", {torch.get_num_threads()} threads")
    assert len(name) <= 200


def test_every_call_of_a_request_is_reported_by_its_label(child: EngineChild) -> None:
    sha256 = child.load(tiny_model("sd15")).sha256
    child.measured.clear()
    assert isinstance(child.draw(tiny_request("first"))[-1][0], Finished)
    # The engine idles: what is left to tell is told without another request.
    while sum(each.calls for each in child.measured) < 6:
        child.take_report()
    by_kind = {each.cost.label.kind: each.cost for each in child.measured}
    assert set(by_kind) == {"prompts", "denoise", "decode"}
    assert {each.label.sha256 for each in by_kind.values()} == {sha256[:12]}
    assert {each.label.model for each in by_kind.values()} == {"tiny"}
    assert {each.label.dtype for each in by_kind.values()} == {"float32"}
    denoise, decode = by_kind["denoise"], by_kind["decode"]
    assert (denoise.label.width_px, denoise.label.height_px, denoise.label.tokens, denoise.rows) == (64, 64, 77, 2)
    assert (decode.label.width_px, decode.label.tokens, decode.rows) == (64, 0, decode.label.rows_each)
    assert by_kind["prompts"].label.tokens == 2 * 75
    assert sum(each.calls for each in child.measured if each.cost.label.kind == "denoise") == 4


def test_an_engine_that_is_told_nonsense_draws_all_the_same(child: EngineChild) -> None:
    card = child.load(tiny_model("sd15"), model="told")
    sha256 = card.sha256[:12]
    wrong = [
        cost(rows, 86_400.0, calls=1 << 40, peak_bytes=1 << 50, model="told", sha256=sha256) for rows in (1, 2, 64)
    ]
    child.send(Remember(costs=tuple(wrong)))
    child.send(Remember(costs=()))
    assert isinstance(child.draw(tiny_request("after", model="told"))[-1][0], Finished)


@pytest.mark.parametrize(("target_s", "shared"), [("0", True), ("0.000001", False)])
def test_requests_share_steps_unless_these_would_take_longer_than_they_may(target_s: str, shared: bool) -> None:
    with EngineChild("--step-target-s", target_s) as child:
        child.hello()
        child.load(tiny_model("sd15"))
        for name in "abc":
            child.send(tiny_request(name, steps=30))
        for name in "abc":
            assert isinstance(child.rest(name)[-1][0], Finished)
        while sum(each.calls * each.cost.rows for each in steps_of(child)) < 3 * 30 * 2:
            child.take_report()
        assert (max(each.cost.rows for each in steps_of(child)) > 2) == shared


def steps_of(child: EngineChild) -> list[MeasuredCost]:
    return [each for each in child.measured if each.cost.label.kind == "denoise"]
