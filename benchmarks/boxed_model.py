"""One 64 px picture of 20 steps on one core: HTTP submit → ended, beside the same call of plain diffusers.

    .venv/bin/python -m benchmarks.boxed_model [--requests 20] [--steps 20] [--cpu N]

The core is shared by everything: Valkey, S3, gateway, agent, engine, and this program. Linux only.
"""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks.figures import machine, quantile
from benchmarks.fleet import fleet
from benchmarks.latency import bare_pipeline, over_http

#: What a newcomer's laptop should need at most, s.
LIMIT_S = 2.0
_WARM_UP = 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--requests", type=int, default=20)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="the core; default: the last")
    given = arguments.parse_args()
    # Before any process or thread of ours starts: all of them inherit it, Valkey's and SeaweedFS' included.
    os.sched_setaffinity(0, {given.cpu})
    draw = bare_pipeline(given.steps)
    bare: list[float] = []
    through: list[float] = []
    with fleet() as service:
        service.agent()
        gateway = service.gateway()
        gateway.wait_for_workers()
        with gateway.client() as client:
            # Alternating, so that both meet the same machine.
            for seed in range(given.requests + _WARM_UP):
                bare.append(draw(seed))
                through.append(over_http(client, seed, given.steps)[1])
    report(bare[_WARM_UP:], through[_WARM_UP:], steps=given.steps, cpu=given.cpu)


def report(bare: list[float], through: list[float], *, steps: int, cpu: int) -> None:
    """Print one table in seconds; exit with 1 where the limit is not held."""
    print(machine())
    print(f"{len(through)} pictures, {steps} steps, 64 × 64 px, fp32, everything on core {cpu}, AOF fsync always\n")
    print(f"{'s':30} {'p50':>7} {'p90':>7} {'min':>7} {'max':>7}")
    for name, values in {"bare pipeline call": bare, "HTTP submit → ended": through}.items():
        figures = (quantile(values, 0.5), quantile(values, 0.9), min(values), max(values))
        print(f"{name:30} " + " ".join(f"{figure:7.3f}" for figure in figures))
    print(f"{'service / bare':30} {quantile(through, 0.5) / quantile(bare, 0.5):7.3f}")
    p90_s = quantile(through, 0.9)
    held = p90_s <= LIMIT_S
    print(f"\nasked: at most {LIMIT_S:.1f} s on one core; p90 {p90_s:.3f} s: {'held' if held else 'NOT held'}")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
