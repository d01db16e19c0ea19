"""One resumable training run: optimiser, schedule, moving average, checkpoints, progress.

A stage says what its modules are and what the loss of a step is; everything that every stage needs alike is here.

Randomness is a function of (seed, step), never of history: a run that was stopped and resumed sees the batches that it
would have seen.
"""

import copy
import json
import math
import random
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

#: Steps between two checkpoints.
_CHECKPOINT_EVERY = 250


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast a stage learns."""

    steps: int
    #: Pictures in a step.
    batch: int
    #: Peak of the learning rate: reached after `warmup` steps, then falling to zero as a half cosine.
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    #: Decay of the moving average of the weights, which is what a stage saves.
    ema_decay: float = 0.998
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup)
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True, slots=True)
class Step:
    """What a loss function is given."""

    number: int
    #: 0 at the first step, towards 1 at the last.
    fraction: float
    batch: int
    rng: random.Random
    generator: torch.Generator


Modules = Mapping[str, nn.Module]
Loss = Callable[[Step], torch.Tensor]
#: Saves the averaged modules; called at each checkpoint and at the end.
Save = Callable[[Modules], None]


def train(name: str, folder: Path, recipe: Recipe, modules: Modules, loss_of: Loss, save: Save) -> bool:
    """Run a stage to its end in `folder`, resuming what is there; Ctrl-C writes a checkpoint and stops.

    Trained are the parameters that require gradients. Returns whether the end was reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    run = _Run(folder, recipe, modules)
    run.resume()
    with _StopRequest() as stop, tqdm(**_progress(name), total=recipe.steps, initial=run.step) as progress:
        while run.step < recipe.steps and not stop.asked:
            loss = run.advance(loss_of)
            progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
            progress.update()
            if run.step % _CHECKPOINT_EVERY == 0 or run.step == recipe.steps or stop.asked:
                run.checkpoint()
                save(run.averages)
    if run.step < recipe.steps:
        print(f"{name}: stopped at step {run.step}; the same command goes on from there", file=sys.stderr)
    return run.step == recipe.steps


def _progress(name: str) -> dict[str, Any]:
    """Return how progress is drawn: a log file gets a line now and then."""
    return {"desc": name, "unit": "step", "mininterval": 0.2 if sys.stderr.isatty() else 20.0}


class _StopRequest:
    """Whether SIGINT or SIGTERM came, while entered; a second one ends the process as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopRequest":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[number])


class _Run:
    def __init__(self, folder: Path, recipe: Recipe, modules: Modules) -> None:
        self.step = 0
        self.averages = {name: copy.deepcopy(module).eval() for name, module in modules.items()}
        self._folder, self._recipe = folder, recipe
        self._modules = dict(modules)
        pairs = [
            (live, average)
            for name, module in modules.items()
            for live, average in zip(module.parameters(), self.averages[name].parameters(), strict=True)
            if live.requires_grad
        ]
        self._live, self._averaged = [p[0] for p in pairs], [p[1] for p in pairs]
        self._optimizer = torch.optim.AdamW(
            self._live, recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        self._recent: list[float] = []

    def advance(self, loss_of: Loss) -> float:
        """Take one step and return the mean loss of the last hundred."""
        recipe = self._recipe
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(self.step)
        loss = loss_of(self._draws())
        self._optimizer.zero_grad(set_to_none=False)
        loss.backward()
        nn.utils.clip_grad_norm_(self._live, 1.0)
        self._optimizer.step()
        self.step += 1
        with torch.no_grad():
            decay = min(recipe.ema_decay, self.step / (9 + self.step))  # a short memory at first
            for average, live in zip(self._averaged, self._live, strict=True):
                average.lerp_(live, 1 - decay)
        self._recent = [*self._recent[-99:], loss.item()]
        return sum(self._recent) / len(self._recent)

    def _draws(self) -> Step:
        recipe = self._recipe
        seed = recipe.seed * 1_000_003 + self.step
        return Step(
            number=self.step,
            fraction=self.step / recipe.steps,
            batch=recipe.batch,
            rng=random.Random(seed),
            generator=torch.Generator().manual_seed(seed),
        )

    def checkpoint(self) -> None:
        """Write everything that `resume` needs; an interrupted write leaves the last one whole."""
        tensors = {f"live.{k}": v for k, v in self._states(self._modules).items()}
        tensors |= {f"average.{k}": v for k, v in self._states(self.averages).items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        partial = self._folder / "checkpoint.partial"
        save_file(
            {k: v.contiguous() for k, v in tensors.items()},
            partial,
            {"steps": str(self._recipe.steps), "seed": str(self._recipe.seed)},
        )
        partial.replace(self._folder / "checkpoint.safetensors")
        with (self._folder / "loss.jsonl").open("a") as log:
            mean = sum(self._recent) / max(1, len(self._recent))
            log.write(json.dumps({"step": self.step, "loss": round(mean, 5)}) + "\n")

    def resume(self) -> None:
        """Go on from the checkpoint in the folder, if there is one."""
        file = self._folder / "checkpoint.safetensors"
        if not file.exists():
            return
        with safe_open(file, "pt") as opened:
            before = opened.metadata() or {}
        now = {"steps": str(self._recipe.steps), "seed": str(self._recipe.seed)}
        if before != now:
            # Allowed: to end sooner, or to go on. But the learning rate jumps to where the new schedule has it.
            print(f"the checkpoint was made with {before}, this run goes on with {now}", file=sys.stderr)
        tensors = load_file(file)
        for name in self._modules:
            _load(self._modules[name], tensors, f"live.{name}.")
            _load(self.averages[name], tensors, f"average.{name}.")
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key in (k for k in tensors if k.startswith("optimizer.")):
            _, index, what = key.split(".", 2)
            state.setdefault(int(index), {})[what] = tensors[key]
        whole = self._optimizer.state_dict()
        self._optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
        self.step = int(next(iter(state.values()))["step"].item())

    def _states(self, modules: Modules) -> dict[str, torch.Tensor]:
        return {f"{n}.{k}": v.clone() for n, module in modules.items() for k, v in module.state_dict().items()}


def _load(module: nn.Module, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
