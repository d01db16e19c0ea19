"""What sharing denoiser calls gains: the whole service over HTTP against sequential calls of plain diffusers.

    .venv/bin/python -m benchmarks.batching [--rounds 3] [--jobs 96] [--in-flight 16]

The model has the structure of Stable Diffusion 1.5 with narrow layers and random weights, at 64 px: like the real one
on a fast GPU, it is bound by the dispatch of its operations, not by their arithmetic. Steps, samplers, guidance and
seeds are mixed. Both sides draw the same requests in turns, with one torch thread, on the same machine; the service's
other processes have the other cores.

Second table: 4-step jobs that arrive while 30-step jobs keep the engine busy, for an engine that draws one request at a
time and for one that draws many.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.figures import machine, quantile
from benchmarks.fleet import fleet

SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "pndm", "heun", "dpmpp_2m_sde")
STEPS = (8, 12, 16, 20, 25, 30)
#: 30-step jobs kept in flight, and 4-step jobs measured among them, one after the other.
LONG, SHORT_JOBS = 12, 40


def request(n: int) -> dict[str, Any]:
    """Return request n of the mix."""
    return {
        "prompt": f"picture {n}",
        "seed": n,
        "steps": STEPS[n % len(STEPS)],
        "scheduler": SAMPLERS[n % len(SAMPLERS)],
        "guidance_scale": (7.5, 4.0, 1.0)[n % 3],
    }


def build_model(folder: Path) -> Path:
    """Write the model; return its folder."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    from tests.models import tiny_model

    torch.manual_seed(0)
    parts = StableDiffusionPipeline.from_pretrained(tiny_model("sd15"), safety_checker=None).components
    # Down and up blocks of Stable Diffusion 1.5: four levels of two layers, attention in three.
    parts["unet"] = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32, 32),
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=32,
    )
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder / "model")
    catalogue = folder / "models.yaml"
    catalogue.write_text(
        "models:\n  - {id: dispatch-bound, source: model, default: true, defaults: {width: 64, height: 64}}\n", "utf-8"
    )
    return catalogue


class Plain:
    """diffusers as a user writes it, one call after the other."""

    def __init__(self, folder: Path) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        torch.set_num_threads(1)
        self._torch = torch
        self._pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
        self._pipe.set_progress_bar_config(disable=True)
        self._own = self._pipe.scheduler

    def draw(self, wanted: dict[str, Any]) -> None:
        from tests.fidelity.reference import SAMPLERS as CLASSES

        self._pipe.scheduler = CLASSES[wanted["scheduler"]](self._own.config, wanted["seed"], {})
        self._pipe(
            wanted["prompt"],
            width=64,
            height=64,
            num_inference_steps=wanted["steps"],
            guidance_scale=wanted["guidance_scale"],
            generator=self._torch.Generator().manual_seed(wanted["seed"]),
        )


async def draw_over_http(client: httpx.AsyncClient, wanted: dict[str, Any]) -> float:
    """Submit, wait for the end; return the seconds it took."""
    begun = time.perf_counter()
    accepted = await client.post("/v1/generations", json=wanted)
    accepted.raise_for_status()
    ended = await client.get(accepted.headers["Location"], headers={"Prefer": "wait=120"})
    assert ended.json()["status"] == "succeeded", ended.text
    return time.perf_counter() - begun


async def all_over_http(url: str, jobs: list[dict[str, Any]], in_flight: int) -> list[float]:
    """Draw every job with this many in flight at any time; return the seconds of each."""
    waiting = iter(jobs)
    took: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=150, limits=httpx.Limits(max_connections=None)) as client:

        async def lane() -> None:
            for wanted in waiting:
                took.append(await draw_over_http(client, wanted))

        await asyncio.gather(*(lane() for _ in range(in_flight)))
    return took


async def short_among_long(url: str) -> list[float]:
    """Return the seconds of each 4-step job, while 30-step jobs are always in flight."""
    numbers = itertools.count(10_000)
    stop = asyncio.Event()

    def job(steps: int) -> dict[str, Any]:
        return request(next(numbers)) | {"steps": steps, "scheduler": "ddim", "guidance_scale": 7.5}

    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:

        async def long_lane() -> None:
            while not stop.is_set():
                await draw_over_http(client, job(30))

        lanes = [asyncio.create_task(long_lane()) for _ in range(LONG)]
        await draw_over_http(client, job(4))  # the lanes are under way
        took = [await draw_over_http(client, job(4)) for _ in range(SHORT_JOBS)]
        stop.set()
        await asyncio.gather(*lanes)
    return took


def throughput(catalogue: Path, rounds: int, jobs: int, in_flight: int) -> None:
    """Print images per second of both sides, in turns."""
    plain = Plain(catalogue.parent / "model")
    with fleet() as service:
        service.models = catalogue
        service.agent(DARKROOM_ENGINE_CAPACITY=str(in_flight))
        gateway = service.gateway()
        gateway.wait_for_workers()
        wanted = [request(n) for n in range(jobs)]
        asyncio.run(all_over_http(gateway.url, wanted[:in_flight], in_flight))
        plain.draw(wanted[0])
        print(f"{'round':8} {'plain pipe(), images/s':>24} {f'service, {in_flight} in flight':>24} {'ratio':>8}")
        ratios = []
        for number in range(rounds):
            begun = time.perf_counter()
            for one in wanted[: jobs // 4]:
                plain.draw(one)
            alone = jobs // 4 / (time.perf_counter() - begun)
            begun = time.perf_counter()
            asyncio.run(all_over_http(gateway.url, wanted, in_flight))
            shared = jobs / (time.perf_counter() - begun)
            ratios.append(shared / alone)
            print(f"{number + 1:<8} {alone:24.2f} {shared:24.2f} {ratios[-1]:8.2f}")
        print(f"ratio, median and range: {quantile(ratios, 0.5):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n")


def latency(catalogue: Path, in_flight: int) -> None:
    """Print how long 4-step jobs take among 30-step ones."""
    print(f"{SHORT_JOBS} jobs of 4 steps, one after the other, among {LONG} of 30 steps at any time")
    print(f"{'engine':24} {'p50, s':>8} {'p99, s':>8}")
    p99 = {}
    for capacity, name in ((1, "one at a time"), (in_flight, f"up to {in_flight} at once")):
        with fleet() as service:
            service.models = catalogue
            service.agent(DARKROOM_ENGINE_CAPACITY=str(capacity))
            gateway = service.gateway()
            gateway.wait_for_workers()
            took = asyncio.run(short_among_long(gateway.url))
        p99[capacity] = quantile(took, 0.99)
        print(f"{name:24} {quantile(took, 0.5):8.3f} {p99[capacity]:8.3f}")
    print(f"p99, many at once / one at a time: {p99[in_flight] / p99[1]:.3f}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--jobs", type=int, default=96)
    arguments.add_argument("--in-flight", type=int, default=16)
    given = arguments.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        catalogue = build_model(Path(folder))
        throughput(catalogue, given.rounds, given.jobs, given.in_flight)
        latency(catalogue, given.in_flight)


if __name__ == "__main__":
    main()
