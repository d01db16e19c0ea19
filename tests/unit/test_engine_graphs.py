"""Recorded calls return what the module returns, whatever comes between; what cannot be recorded is made eagerly."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.models import tiny_model
from tests.recorder import Rerun
from worker.engine.buckets import WIDTHS, bucket, cut, padded
from worker.engine.calls import DenoiserCall, Joined
from worker.engine.graphs import Graphs
from worker.engine.lessons import Lesson
from worker.engine.speed import PreparedCalls


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@cache
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_model("sd15") / "unet").eval()


class Scaling(torch.nn.Module):
    """Returns its latents times its one weight and its timesteps; counts its calls and the rows of each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))
        self.widths: list[int] = []
        self.error: Exception | None = None

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        self.widths.append(len(sample))
        if self.error is not None:
            raise self.error
        return (sample * self.weight * timestep.view(-1, 1),)


def joined(value: float, *, rows: int = 2, width: int = 3, timestep: float = 1.0, **constants: Any) -> Joined:
    """Return a call of equal rows; as they are in pipelines, its tensors are used once."""
    named = {"sample": torch.full((rows, width), value), "timestep": torch.full((rows,), timestep)} | constants
    leaves = {(name,): leaf for name, leaf in named.items()}
    return Joined(leaves, frozenset({("sample",), ("timestep",)}), rows, named)


def make(module: torch.nn.Module, call: Joined) -> Any:
    return module(**call.arguments())


def run(graphs: Graphs, module: torch.nn.Module, call: Joined) -> Any:
    return graphs.run(module, call)[0]


def graphs_of(recorder: Rerun, *, after: int = 2, most: int = 8) -> Graphs:
    return Graphs(make, recorder, after=after, most=most)


def test_a_call_is_recorded_when_it_came_often_and_then_repeated_with_what_is_new_in_it() -> None:
    recorder, module = Rerun(), Scaling()
    graphs = graphs_of(recorder, after=3)
    results = [run(graphs, module, joined(n, timestep=n)) for n in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert (recorder.recorded, recorder.repeated) == (1, 3)
    # All at the end: a result lies in memory of its own, which no later repetition overwrites.
    for n, result in zip((1.0, 2.0, 3.0, 4.0, 5.0), results, strict=True):
        assert torch.equal(result[0], torch.full((2, 3), 2 * n * n))


def test_calls_teach_what_they_take_until_they_are_recorded_and_then_their_time_only() -> None:
    module = Scaling()
    graphs = graphs_of(Rerun(), after=3)
    lessons = [graphs.run(module, joined(1.0))[1] for _ in range(5)]
    assert lessons == [Lesson.EVERYTHING] * 2 + [Lesson.NOTHING] + [Lesson.TIME] * 2
    refused = graphs_of(Rerun(refuses=1), after=1)
    assert [refused.run(module, joined(1.0))[1] for _ in range(2)] == [Lesson.NOTHING, Lesson.EVERYTHING]


def test_recordings_are_apart_where_anything_but_numbers_in_tensors_differs() -> None:
    recorder, module = Rerun(), Scaling()
    graphs = graphs_of(recorder, after=1, most=16)
    kinds: list[dict[str, Any]] = [
        {},
        {"rows": 4},
        {"width": 5},
        {"scale": 0.5},
        {"scale": 0.25},
        {"flag": 1},
        {"flag": True},
    ]
    for _ in range(2):
        for kind in kinds:
            graphs.run(module, joined(1.0, **kind))
    graphs.run(Scaling(), joined(1.0))
    half = joined(1.0)
    graphs.run(module, half.but({path: leaf.half() for path, leaf in half.leaves.items()}, 2))
    assert recorder.recorded == len(graphs) == 9
    assert recorder.repeated == len(kinds) * 2 + 2


def test_a_call_with_something_that_cannot_be_compared_is_never_recorded() -> None:
    recorder, module = Rerun(), Scaling()
    graphs = graphs_of(recorder, after=1)
    for _ in range(3):
        graphs.run(module, joined(1.0, options={1, 2}))
    assert (recorder.recorded, module.widths) == (0, [2, 2, 2])


def test_the_recording_that_was_not_used_for_the_longest_goes_first_and_must_come_often_again() -> None:
    recorder, module = Rerun(), Scaling()
    graphs = graphs_of(recorder, after=2, most=2)
    for rows in (1, 1, 2, 2, 1, 4, 4):
        graphs.run(module, joined(1.0, rows=rows))
    assert (len(graphs), recorder.recorded, recorder.repeated) == (2, 3, 4)
    graphs.run(module, joined(1.0, rows=2))
    assert recorder.recorded == 3
    graphs.run(module, joined(1.0, rows=1))
    graphs.run(module, joined(1.0, rows=2))
    assert recorder.recorded == 4


def test_what_cannot_be_recorded_is_made_eagerly_for_good_and_nothing_else_is() -> None:
    recorder, module = Rerun(refuses=1), Scaling()
    graphs = graphs_of(recorder, after=2)
    for _ in range(5):
        assert torch.equal(run(graphs, module, joined(1.0))[0], torch.full((2, 3), 2.0))
    assert recorder.recorded == 0
    for _ in range(3):
        graphs.run(module, joined(1.0, rows=4))
    assert (recorder.recorded, recorder.repeated) == (1, 2)


def test_weights_that_were_moved_are_not_read_where_they_were() -> None:
    recorder, module = Rerun(), Scaling()
    graphs = graphs_of(recorder, after=1)
    graphs.run(module, joined(1.0))
    graphs.run(module, joined(1.0, rows=4))
    kept = module.weight.data
    module.weight.data = torch.tensor([3.0])
    assert torch.equal(run(graphs, module, joined(1.0))[0], torch.full((2, 3), 3.0))
    assert (len(graphs), recorder.recorded) == (1, 3)
    assert kept.item() == 2.0


@pytest.mark.parametrize(("error", "left"), [(torch.OutOfMemoryError("CUDA out of memory."), 0), (ValueError("no"), 1)])
def test_a_call_that_finds_no_memory_takes_back_that_of_the_recordings(error: Exception, left: int) -> None:
    recorder, module = Rerun(), Scaling()
    graphs = graphs_of(recorder, after=2)
    for _ in range(2):
        graphs.run(module, joined(1.0))
    module.error = error
    with pytest.raises(type(error)):
        graphs.run(module, joined(1.0, rows=8))
    assert len(graphs) == left


def test_a_repetition_that_finds_no_memory_takes_back_that_of_all_recordings() -> None:
    recorder, module = Rerun(), Scaling()
    graphs = graphs_of(recorder, after=1)
    for rows in (1, 2):
        graphs.run(module, joined(1.0, rows=rows))
    module.error = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run(module, joined(1.0, rows=2))
    assert len(graphs) == 0


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 17, 64, 65])
def test_a_padded_call_repeats_its_last_row_and_is_cut_to_its_own(rows: int) -> None:
    call = joined(0.0, rows=rows)
    values = torch.arange(rows * 3.0).view(rows, 3)
    constant = torch.ones(rows)
    call = call.but({**call.leaves, ("sample",): values, ("ids",): constant}, rows)
    wide = padded(call)
    width = bucket(rows)
    assert wide.rows == width == min((w for w in WIDTHS if w >= rows), default=rows)
    assert torch.equal(wide.leaves[("sample",)][:rows], values)
    assert all(torch.equal(row, values[-1]) for row in wide.leaves[("sample",)][rows:])
    assert wide.leaves[("ids",)] is constant
    result = {"sample": wide.leaves[("sample",)], "size": 3}
    assert torch.equal(cut(result, rows)["sample"], values)
    assert cut(result, rows)["size"] == 3


def test_calls_of_a_u_net_of_all_rows_and_samplers_are_made_by_few_recordings() -> None:
    """Timesteps as integers, as fractions, one for all rows or one each: one recording, and the U-Net's own results."""
    recorder = Rerun()
    runner = PreparedCalls(compiles=False, recorder=recorder)
    timesteps = [torch.tensor(500), torch.tensor(500.25), torch.tensor([7, 900]), torch.tensor([3])]

    def arguments(seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rows = 1 + seed % 2
        generator = torch.Generator().manual_seed(seed)
        sample = torch.randn(rows, 4, 8, 8, generator=generator)
        prompts = torch.randn(rows, 77, 32, generator=generator)
        timestep = timesteps[seed // 2 % len(timesteps)] if rows == 2 else torch.tensor(11)
        return (sample, timestep), {"encoder_hidden_states": prompts, "return_dict": False}

    for seed in range(0, 40, 4):
        given = [arguments(seed + n) for n in range(1 + seed // 4 % 4)]
        works = [DenoiserCall(unet(), *each, alone=False, runner=runner) for each in given]
        for (args, kwargs), result in zip(given, works[0].together(works), strict=True):
            assert torch.allclose(result[0], unet()(*args, **kwargs)[0], atol=1e-5)
    assert recorder.repeated > 0
    assert recorder.recorded <= 3


def test_a_call_that_is_to_be_alone_is_made_by_the_module_itself() -> None:
    recorder = Rerun()
    runner = PreparedCalls(compiles=False, recorder=recorder)
    args = (torch.randn(3, 4, 8, 8), torch.tensor(5))
    kwargs = {"encoder_hidden_states": torch.randn(3, 77, 32), "return_dict": False}
    for _ in range(8):
        alone = DenoiserCall(unet(), args, kwargs, alone=True, runner=runner).alone()
    assert torch.equal(alone[0], unet()(*args, **kwargs)[0])
    assert (recorder.recorded, recorder.repeated) == (0, 0)
