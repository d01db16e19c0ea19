"""A training run: stopped and resumed it ends where an undisturbed one ends, to the last bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from training import run
from training.run import Modules, Recipe, Step

RECIPE = Recipe(steps=8, batch=4, learning_rate=1e-2, warmup=2)
CHECKPOINT = "checkpoint.safetensors"


@pytest.fixture(autouse=True)
def _own_random_state_and_usual_signals() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    with torch.random.fork_rng(devices=[]):
        yield
    signal.signal(signal.SIGINT, before)


class Stage:
    """A stage of one linear layer; `before` is called with each step."""

    def __init__(self, folder: Path, before: Callable[[Step], None] = lambda _: None) -> None:
        torch.manual_seed(7)
        self.folder, self.module, self._before = folder, nn.Linear(3, 2), before
        self.start = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.saved: list[dict[str, torch.Tensor]] = []

    def train(self, recipe: Recipe = RECIPE) -> bool:
        return run.train("stage", self.folder, recipe, {"layer": self.module}, self._loss, self._save)

    def _loss(self, step: Step) -> torch.Tensor:
        self._before(step)
        x = torch.randn(step.batch, 3, generator=step.generator)
        return (self.module(x) - (1 + step.rng.random()) * x[:, :2]).pow(2).mean()

    def _save(self, averages: Modules) -> None:
        self.saved.append({name: value.clone() for name, value in averages["layer"].state_dict().items()})

    def checkpoint(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / CHECKPOINT)


def interrupt_at(number: int, times: int = 1) -> Callable[[Step], None]:
    def before(step: Step) -> None:
        if step.number == number:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return before


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def undisturbed(folder: Path) -> dict[str, torch.Tensor]:
    stage = Stage(folder)
    assert stage.train()
    return stage.checkpoint()


def test_ctrl_c_writes_a_checkpoint_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGINT)
    stage = Stage(tmp_path, interrupt_at(3))
    assert not stage.train()
    assert {int(v) for k, v in stage.checkpoint().items() if k.endswith(".step")} == {4}
    assert len(stage.saved) == 1
    assert "stopped at step 4" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler


def test_resumed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    assert not Stage(tmp_path / "resumed", interrupt_at(3)).train()
    resumed = Stage(tmp_path / "resumed")
    assert resumed.train()
    whole = Stage(tmp_path / "whole")
    assert whole.train()
    assert_same(resumed.checkpoint(), whole.checkpoint())
    assert_same(resumed.saved[-1], whole.saved[-1])


def test_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    assert not Stage(tmp_path, interrupt_at(3)).train()
    before = (tmp_path / CHECKPOINT).read_bytes()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Stage(tmp_path, interrupt_at(5, times=2)).train()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert signal.getsignal(signal.SIGINT) is handler


def test_checkpoint_that_could_not_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not Stage(folder, interrupt_at(3)).train()
    before = (folder / CHECKPOINT).read_bytes()
    obstacle = folder / "checkpoint.partial"
    obstacle.mkdir()
    with pytest.raises((OSError, SafetensorError)):
        Stage(folder).train()
    assert (folder / CHECKPOINT).read_bytes() == before
    obstacle.rmdir()
    stage = Stage(folder)
    assert stage.train()
    assert_same(stage.checkpoint(), undisturbed(tmp_path / "whole"))


def test_half_written_checkpoint_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not Stage(folder, interrupt_at(3)).train()
    (folder / "checkpoint.partial").write_bytes((folder / CHECKPOINT).read_bytes()[:100])
    stage = Stage(folder)
    assert stage.train()
    assert_same(stage.checkpoint(), undisturbed(tmp_path / "whole"))


def test_finished_run_takes_no_further_step(tmp_path: Path) -> None:
    before = undisturbed(tmp_path)
    steps: list[int] = []
    assert Stage(tmp_path, lambda step: steps.append(step.number)).train()
    assert steps == []
    assert_same(Stage(tmp_path).checkpoint(), before)


def test_another_seed_ends_elsewhere(tmp_path: Path) -> None:
    other = Stage(tmp_path / "other")
    assert other.train(Recipe(steps=8, batch=4, learning_rate=1e-2, warmup=2, seed=1))
    weight = undisturbed(tmp_path / "whole")["live.layer.weight"]
    assert not torch.equal(other.checkpoint()["live.layer.weight"], weight)


def test_saved_is_the_moving_average_with_a_short_memory_at_first(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    assert stage.train(Recipe(steps=1, batch=4, learning_rate=1e-2, warmup=1))
    expected = torch.lerp(stage.start["weight"], stage.module.weight.detach(), 0.9)
    torch.testing.assert_close(stage.saved[-1]["weight"], expected)


def test_parameters_that_require_no_gradient_stay(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.module.bias.requires_grad_(requires_grad=False)
    assert stage.train()
    assert torch.equal(stage.module.bias, stage.start["bias"])
    assert torch.equal(stage.saved[-1]["bias"], stage.start["bias"])
    assert not torch.equal(stage.saved[-1]["weight"], stage.start["weight"])


def test_each_checkpoint_leaves_a_line_of_the_loss(tmp_path: Path) -> None:
    assert not Stage(tmp_path, interrupt_at(3)).train()
    assert Stage(tmp_path).train()
    lines = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    assert all(line["loss"] > 0 for line in lines)


def test_learning_rate_rises_to_its_peak_and_falls_towards_zero() -> None:
    recipe = Recipe(steps=1000, batch=1, learning_rate=2.0, warmup=10)
    rates = [recipe.learning_rate_at(step) for step in range(recipe.steps)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(2.0, rel=1e-2)
    assert rates[500] == pytest.approx(1.0)
    assert 0 < rates[-1] < 1e-4
