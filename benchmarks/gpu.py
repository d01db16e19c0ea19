"""Full-size models with random weights on a GPU: plain diffusers, compiled diffusers, and the engine with its options.

    .venv/bin/python -m benchmarks.gpu [--model sd15|sdxl] [--steps 30] [--in-flight 1,4,8,16,32] [--minutes 9]
    .venv/bin/python -m benchmarks.gpu --tiny --steps 2 --in-flight 1,4 --row-s 0

Stable Diffusion 1.5 at 512 px and XL at 1024 px, with guidance, in bfloat16, from prompts to uint8 pixels, offline, in
one run on one machine. Each row draws until `--row-s` seconds have passed, at least one picture for each that is in
flight, and is printed when it is known; what cannot be measured says why, and so does what no time is left for. Step
times are the device's. The last column but one is the share of the arithmetic limit: the operations that torch counts
in the steps and in the decoding, at `--tflops` (dense bfloat16; 790 was measured on an H200, where 30 steps are then
15.57 and 1.90 images/s at most). `--tiny` runs the same on a CPU, to see that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figures import quantile
from benchmarks.gpu_models import build, with_options
from service.contract.engine import FromEngine, Generate, StepDone
from service.contract.generation import GenerationSpec
from worker.engine.batch import Batch, batch_for
from worker.engine.drawing import Drawing
from worker.engine.faults import free_memory
from worker.pipelines.loading import LoadedModel
from worker.pipelines.quiet import quiet_libraries

#: s that must be left for a row that compiles.
_COMPILING_S = 100.0
#: Steps of what comes before each measurement, which finds the widths that fit, and records and compiles.
_WARM_UP_STEPS = 6


@dataclass(slots=True)
class Clock:
    """Marks moments in the device's own course, so that nothing waits for it."""

    device: torch.device
    marks: list[Any] = field(default_factory=list)

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def between_ms(self) -> list[float]:
        """Return the times from each mark to the next; the device has ended all."""
        if self.device.type == "cuda":
            return [a.elapsed_time(b) for a, b in itertools.pairwise(self.marks)]
        return [1000 * (b - a) for a, b in itertools.pairwise(self.marks)]


@dataclass(slots=True)
class Measured:
    """What one row says."""

    images_per_s: float
    step_ms: list[float]


@dataclass(frozen=True, slots=True)
class Bench:
    """One model, and how it is measured."""

    model: LoadedModel
    steps: int
    row_s: float
    #: Images/s at the arithmetic limit.
    limit: float
    #: `time.monotonic` after which nothing is begun.
    until_s: float

    def row(self, name: str, measure: Callable[[], Measured], *, compiles: bool = False) -> None:
        """Print one row of the table."""
        if time.monotonic() + (_COMPILING_S if compiles else 0.0) > self.until_s:
            print(f"{name:44} skipped: no time left", flush=True)
            return
        begun_s = time.monotonic()
        try:
            row = measure()
        except Exception as err:  # noqa: BLE001 - the other rows are to be had all the same
            reason = str(err).strip().splitlines()[0][:150] if str(err).strip() else ""
            print(f"{name:44} failed: {type(err).__name__}: {reason}", flush=True)
        else:
            p50, p99 = (quantile(row.step_ms, q) for q in (0.5, 0.99))
            part, took_s = row.images_per_s / self.limit, time.monotonic() - begun_s
            print(f"{name:44} {row.images_per_s:9.3f} {p50:9.1f} {p99:9.1f} {part:9.1%} {took_s:7.0f}", flush=True)
        free_memory()

    def plain(self, batch: int, *, compiled: bool = False) -> Measured:
        """Draw by whole calls of the stock pipeline, one after the other."""
        pipeline = with_options(self.model).pipeline
        unet, decode = pipeline.unet, pipeline.vae.decode
        try:
            if compiled:
                pipeline.unet = torch.compile(unet, dynamic=False)
                pipeline.vae.decode = torch.compile(decode, dynamic=False)
            self._call(batch, _WARM_UP_STEPS)
            self._wait()
            begun_s, images, step_ms = time.perf_counter(), 0, list[float]()
            while not images or time.perf_counter() - begun_s < self.row_s:
                clock = self._call(batch, self.steps)
                images += batch
                self._wait()
                step_ms += clock.between_ms()
            return Measured(images / (time.perf_counter() - begun_s), step_ms)
        finally:
            pipeline.unet, pipeline.vae.decode = unet, decode

    def _call(self, batch: int, steps: int) -> Clock:
        clock, card = Clock(self.model.device), self.model.card

        def mark(_pipeline: Any, _step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
            clock.mark()
            return {}

        pictures = self.model.pipeline(
            prompt=[f"picture {n}" for n in range(batch)],
            width=card.width,
            height=card.height,
            num_inference_steps=steps,
            guidance_scale=5.0,
            generator=[torch.Generator().manual_seed(n) for n in range(batch)],
            output_type="pt",
            callback_on_step_end=mark,
        ).images
        (pictures * 255).round().to(torch.uint8).cpu()
        return clock

    def engine(self, in_flight: int, *, same_prompt: bool = False, **options: Any) -> Measured:
        """Draw by the engine, with this many requests in flight at any time."""
        model = with_options(self.model, **{"embedding_cache": 0, **options})
        batch = batch_for(model.device, lost=_fail)
        # Twice: widths grow from one request's, and what comes often is recorded.
        for _ in range(2):
            _drive(batch, itertools.repeat(lambda: _draw(model, _WARM_UP_STEPS, 0)), in_flight, in_flight, 0.0)
        self._wait()
        clocks: list[Clock] = []
        numbers = itertools.count()

        def begin() -> None:
            n = next(numbers)
            clocks.append(clock := Clock(model.device))
            _draw(model, self.steps, 0 if same_prompt else n, clock)

        begun_s = time.perf_counter()
        images = _drive(batch, itertools.repeat(begin), in_flight, in_flight, self.row_s)
        self._wait()
        seconds = time.perf_counter() - begun_s
        return Measured(images / seconds, [step for clock in clocks for step in clock.between_ms()])

    def _wait(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()


def _draw(model: LoadedModel, steps: int, number: int, clock: Clock | None = None) -> None:
    """Draw one picture, as the engine does for the agent."""

    def send(message: FromEngine, _buffers: object = ()) -> None:
        if clock is not None and isinstance(message, StepDone):
            clock.mark()

    spec = GenerationSpec(
        task="text-to-image",
        model=model.card.id,
        prompt=f"picture {number}",
        width=model.card.width,
        height=model.card.height,
        steps=steps,
        guidance_scale=5.0,
        scheduler="euler",
        seed=number,
    )
    request = Generate(execution_id=f"{number}", spec=spec)
    Drawing(model, request, list[bytes](), send=send, is_canceled=lambda: False).run()


def _drive(batch: Batch, bodies: Any, in_flight: int, least: int, seconds: float) -> int:
    """Keep so many bodies running until the time is over and the least number has begun; return how many ran."""
    until_s = time.perf_counter() + seconds
    begun, running = 0, list[Any]()
    while True:
        while len(running) < in_flight and (begun < least or time.perf_counter() < until_s):
            running.append(batch.hub.start(next(bodies)))
            begun += 1
        if not running:
            return begun
        batch.tick()
        running = [strand for strand in running if not strand.dead]


def operations(model: LoadedModel, steps: int) -> float:
    """Return the floating-point operations of one image: its steps with guidance, and its decoding."""
    unet, side = model.pipeline.unet, model.card.width // 8
    options: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    added: dict[str, Any] = {}
    if model.card.family == "sdxl":
        pooled = torch.randn(2, model.pipeline.text_encoder_2.config.projection_dim, **options)
        added["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(2, 6, **options)}
    latents = torch.randn(2, 4, side, side, **options)
    with FlopCounterMode(display=False) as step:
        unet(latents, 1, torch.randn(2, 77, unet.config.cross_attention_dim, **options), **added)
    with FlopCounterMode(display=False) as decode:
        model.pipeline.vae.decode(latents[:1])
    return steps * step.get_total_flops() + decode.get_total_flops()


def _fail(error: Exception) -> None:
    raise error


def eager_rows(bench: Bench, in_flight: list[int]) -> None:
    """Measure what begins at once."""
    card = bench.model.card
    print(
        f"\n{card.id}, {card.width} px, {bench.steps} steps, guidance, {card.dtype}; limit {bench.limit:.2f} images/s"
    )
    print(f"{'':44} {'images/s':>9} {'step p50':>9} {'p99, ms':>9} {'of limit':>9} {'took, s':>7}", flush=True)
    bench.row("plain diffusers, batch 1", lambda: bench.plain(1))
    for n in in_flight:
        bench.row(f"engine, {n} in flight", lambda n=n: bench.engine(n))
    few, many = in_flight[0], in_flight[len(in_flight) // 2]
    for n in (few, many):
        bench.row(f"engine, {n} in flight, graphs", lambda n=n: bench.engine(n, graphs=True))
        bench.row(f"engine, {n} in flight, channels_last", lambda n=n: bench.engine(n, channels_last=True))
    bench.row(
        f"engine, {many} in flight, embedding_cache, one prompt",
        lambda: bench.engine(many, embedding_cache=256, same_prompt=True),
    )
    bench.row(f"engine, {many} in flight, vae_batch 2", lambda: bench.engine(many, vae_batch=2))
    bench.row(
        f"engine, {many} in flight, graphs, channels_last",
        lambda: bench.engine(many, graphs=True, channels_last=True),
    )


def compiled_rows(bench: Bench, in_flight: list[int]) -> None:
    """Measure what takes minutes to begin."""
    card, many = bench.model.card, in_flight[len(in_flight) // 2]
    print(f"\n{card.id}, compiled", flush=True)
    bench.row("plain diffusers, compiled, batch 1", lambda: bench.plain(1, compiled=True), compiles=True)
    bench.row(f"engine, {many} in flight, compile", lambda: bench.engine(many, compile=True), compiles=True)
    bench.row("plain diffusers, compiled, batch 8", lambda: bench.plain(8, compiled=True), compiles=True)
    bench.row(
        f"engine, {many} in flight, compile, graphs",
        lambda: bench.engine(many, compile=True, graphs=True),
        compiles=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("sd15", "sdxl"), action="append")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--in-flight", default="1,4,8,16,32")
    parser.add_argument("--row-s", type=float, default=6.0)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--tflops", type=float, default=790.0)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not given.tiny:
        parser.exit(2, "There is no CUDA device here; the figures would mean nothing.\n")
    until_s = time.monotonic() + 60 * given.minutes
    torch.set_grad_enabled(False)
    quiet_libraries()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    in_flight = [int(n) for n in given.in_flight.split(",")]
    benches: list[Bench] = []
    for name in given.model or ["sd15", "sdxl"]:
        model = build(name, device, tiny=given.tiny)
        limit = given.tflops * 1e12 / operations(model, given.steps)
        benches.append(Bench(model, given.steps, given.row_s, limit, until_s))
        eager_rows(benches[-1], in_flight)
    # Of all models only now: compiling is what the time may not be enough for.
    for bench in benches:
        compiled_rows(bench, in_flight)


if __name__ == "__main__":
    main()
