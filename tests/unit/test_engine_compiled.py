"""Compiled calls return what the module returns; where the compiler fails, nobody's request does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from tests.models import COMPILER_WARNINGS
from worker.engine.calls import DenoiserCall
from worker.engine.compiled import Compiled
from worker.engine.speed import PreparedCalls, decode_padded

pytestmark = [
    COMPILER_WARNINGS,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU by g++, which is not here"),
]


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Compile in this process, into a folder of the test's, without gradients."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch.no_grad(), inductor.patch(compile_threads=1):
        torch.compiler.reset()
        counters.clear()
        yield
        torch.compiler.reset()


class Layer(torch.nn.Module):
    """A denoiser of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.nn.functional.silu(self.layer(sample)) * timestep.view(-1, 1),)


def call(module: Layer, runner: PreparedCalls, rows: int, told: list[str], *, alone: bool = False) -> DenoiserCall:
    args = (torch.randn(rows, 8), torch.tensor(3.0))
    return DenoiserCall(module, args, {}, alone=alone, runner=runner, on_prepare=lambda: told.append("compiling"))


def test_a_width_is_compiled_once_told_so_and_then_reused_by_all_that_are_padded_to_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module, told = Layer(), []
    runner = PreparedCalls(compiles=True, recorder=None)
    for rows in (3, 4, 3):
        work = call(module, runner, rows, told)
        sample, timestep = work.leaves["sample",], work.leaves["timestep",]
        expected = torch.nn.functional.silu(module.layer(sample)) * timestep
        assert torch.allclose(work.alone()[0], expected, atol=1e-6)
    assert told == ["compiling"]
    assert counters["stats"]["unique_graphs"] == 1
    assert list(tmp_path.rglob("*.so"))
    assert "seconds" in capfd.readouterr().out


def test_a_call_that_is_to_be_alone_is_not_compiled() -> None:
    module, told = Layer(), []
    runner = PreparedCalls(compiles=True, recorder=None)
    work = call(module, runner, 3, told, alone=True)
    assert torch.equal(work.alone()[0], module(work.leaves["sample",], work.leaves["timestep",])[0])
    assert told == []


def test_pictures_are_decoded_in_few_numbers() -> None:
    told: list[str] = []
    layer = torch.nn.Conv2d(4, 3, 3)

    def decode(latents: torch.Tensor, *, return_dict: bool) -> tuple[torch.Tensor]:
        assert not return_dict
        return (layer(latents),)

    decoder = Compiled(decode, "decoder", backend="eager")
    for n in (3, 4):
        latents = torch.randn(n, 4, 8, 8)
        pictures = decode_padded(decoder, latents, on_prepare=lambda: told.append("compiling"))
        assert torch.allclose(pictures, layer(latents), atol=1e-5)
    assert told == ["compiling"]


def test_where_the_compiler_fails_the_function_is_called_by_itself_from_then_on() -> None:
    layer = Layer()
    compiled, ones = Compiled(layer, "layer"), torch.ones(2)
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert torch.equal(compiled(torch.ones(2, 8), ones)[0], layer(torch.ones(2, 8), ones)[0])
    assert not compiled.is_new(torch.ones(1, 8), ones[:1])
    assert torch.equal(compiled(torch.ones(1, 8), ones[:1])[0], layer(torch.ones(1, 8), ones[:1])[0])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), ValueError("the request's fault")])
def test_a_fault_of_the_call_itself_is_its_own_and_the_compiler_is_asked_again(error: Exception) -> None:
    @torch.compiler.disable
    def failing(_: torch.Tensor) -> torch.Tensor:
        raise error

    compiled = Compiled(failing, "failing")
    for _ in range(2):
        with pytest.raises(type(error)):
            compiled(torch.ones(2))
    assert compiled.is_new(torch.ones(2))
