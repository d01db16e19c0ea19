"""What the service adds to a bare pipeline call: HTTP submit → ended, minus the same call of plain diffusers.

    .venv/bin/python -m benchmarks.latency [--pairs 60] [--steps 8]

Calls alternate, one of each kind, so that both meet the same machine. One torch thread on either side.
"""

from __future__ import annotations

import argparse
import time

import httpx

from benchmarks.figures import machine, quantile
from benchmarks.fleet import ROOT, fleet

PROMPT = "a red circle on a blue background"


def bare_pipeline(steps: int):
    """Return a function that draws once with plain diffusers and returns its seconds."""
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    pipe = StableDiffusionPipeline.from_pretrained(
        ROOT / "worker/models/tiny-emoji", torch_dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)

    def draw(seed: int) -> float:
        begun = time.perf_counter()
        pipe(
            PROMPT,
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(seed),
        )
        return time.perf_counter() - begun

    return draw


def over_http(client: httpx.Client, seed: int, steps: int) -> tuple[float, float, dict]:
    """Submit, wait by `Prefer: wait`; return (seconds to the 202, seconds to the end, the resource)."""
    begun = time.perf_counter()
    accepted = client.post("/v1/generations", json={"prompt": PROMPT, "seed": seed, "steps": steps})
    accepted_s = time.perf_counter() - begun
    reply = client.get(accepted.headers["Location"], headers={"Prefer": "wait=60"})
    ended_s = time.perf_counter() - begun
    resource = reply.json()
    assert resource["status"] == "succeeded", resource
    return accepted_s, ended_s, resource


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=60)
    arguments.add_argument("--steps", type=int, default=8)
    given = arguments.parse_args()
    draw = bare_pipeline(given.steps)
    with fleet() as service:
        service.agent()
        gateway = service.gateway()
        gateway.wait_for_workers()
        rows: list[dict[str, float]] = []
        with gateway.client() as client:
            for seed in range(given.pairs + 5):
                bare_s = draw(seed)
                accepted_s, ended_s, resource = over_http(client, seed, given.steps)
                timings = resource["timings"]
                if seed < 5:
                    continue
                stages = {name: timings[f"{name}_s"] for name in ("queued", "inputs", "compress", "upload")}
                stages["engine"] = sum(timings[f"{phase}_s"] for phase in ("encode", "denoise", "decode"))
                rows.append({"bare": bare_s, "accepted": accepted_s, "ended": ended_s, **stages})
    report(rows, given.steps)


def report(rows: list[dict[str, float]], steps: int) -> None:
    """Print one table in milliseconds."""
    print(machine())
    print(f"{len(rows)} pairs, {steps} steps, 64 × 64 px, fp32, AOF fsync always\n")
    columns: dict[str, list[float]] = {
        "bare pipeline call": [row["bare"] for row in rows],
        "HTTP submit → ended": [row["ended"] for row in rows],
        "  accepted (202)": [row["accepted"] for row in rows],
        "  queued until claimed": [row["queued"] for row in rows],
        "  engine (encode, denoise, decode)": [row["engine"] for row in rows],
        "  compress (PNG)": [row["compress"] for row in rows],
        "  upload (S3)": [row["upload"] for row in rows],
        "  the rest: hand-overs, commit, waking the caller": [
            row["ended"] - sum(row[name] for name in ("accepted", "engine", "compress", "upload")) for row in rows
        ],
        "added: ended − bare": [row["ended"] - row["bare"] for row in rows],
        "added, without compress and upload": [
            row["ended"] - row["bare"] - row["compress"] - row["upload"] for row in rows
        ],
    }
    print(f"{'ms':50} {'p50':>8} {'p90':>8} {'min':>8} {'max':>8}")
    for name, values in columns.items():
        figures = (quantile(values, 0.5), quantile(values, 0.9), min(values), max(values))
        print(f"{name:50} " + " ".join(f"{1000 * figure:8.1f}" for figure in figures))


if __name__ == "__main__":
    main()
