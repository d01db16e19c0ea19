"""Stable Diffusion 3, FLUX.1 and latent consistency models over HTTP, beside each other in one worker."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest

from tests.e2e.processes import Gateway, Service, wait_for
from tests.fidelity.cases import Case
from tests.fidelity.reference import Reference
from tests.models import LIBRARY_WARNINGS, tiny_model

pytestmark = LIBRARY_WARNINGS

#: What each is asked for: every task with a picture once.
CASES = {
    "sd3": Case(task="inpaint", scheduler="flow_heun", negative_prompt="a dog", strength=0.6),
    "flux": Case(task="image-to-image", scheduler="flow_euler", guidance_scale=2.5, strength=0.6),
    "flux_schnell": Case(scheduler="flow_euler", guidance_scale=0.0),
    "lcm": Case(task="image-to-image", scheduler="lcm", guidance_scale=8.5, strength=0.5),
}


@pytest.fixture(scope="module")
def gateway(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    service.models = Path(tmp_path_factory.mktemp("catalogue") / "models.yaml")
    entries = [
        f"  - {{id: {model_id(name)}, source: {tiny_model(name)}, default: {str(name == 'flux').lower()}, "
        f"defaults: {{width: 64, height: 64}}}}\n"
        for name in CASES
    ]
    service.models.write_text("models:\n" + "".join(entries), "utf-8")
    service.agent()
    gateway = service.gateway()
    gateway.wait_for_workers()
    with gateway.client() as client:
        wait_for("every model", lambda: len(client.get("/v1/models").json()["data"]) == len(CASES))
    return gateway


def model_id(name: str) -> str:
    return name.replace("_", "-")


def encoded(picture: PIL.Image.Image) -> dict[str, str]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return {"base64": base64.b64encode(buffer.getvalue()).decode()}


def body_of(name: str, case: Case) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model_id(name),
        "task": case.task,
        "prompt": case.prompt,
        "steps": case.steps,
        "guidance_scale": case.guidance_scale,
        "scheduler": case.scheduler,
        "seed": case.seed,
    }
    if case.negative_prompt:
        body["negative_prompt"] = case.negative_prompt
    if case.task != "text-to-image":
        body |= {"image": encoded(case.input_picture()), "strength": case.strength}
    if case.task == "inpaint":
        body["mask"] = encoded(case.input_mask())
    return body


def test_requests_of_every_family_that_run_at_once_get_diffusers_pictures(gateway: Gateway) -> None:
    with gateway.client() as client:
        bodies = [body_of(name, case) for name, case in CASES.items() for _ in range(2)]
        ids = [client.post("/v1/generations", json=body).json()["id"] for body in bodies]
        drawn = [picture(client, job_id) for job_id in ids]
    for position, (name, case) in enumerate(CASES.items()):
        expected = Reference(tiny_model(name)).draw(case).pixels.astype(int)
        for found in drawn[2 * position : 2 * position + 2]:
            # Two of a kind share calls: equal up to rounding, which may tip a pixel.
            assert np.abs(found - expected).max() <= 1, name


def picture(client: httpx.Client, job_id: str) -> np.ndarray:
    resource = client.get(f"/v1/generations/{job_id}", headers={"Prefer": "wait=60"}).json()
    assert resource["status"] == "succeeded", resource
    data = client.get(resource["images"][0]["url"], follow_redirects=True).content
    return np.asarray(PIL.Image.open(io.BytesIO(data))).astype(int)


def test_the_list_of_models_says_what_each_takes(gateway: Gateway) -> None:
    with gateway.client() as client:
        models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert {name: model["family"] for name, model in models.items()} == {
        "flux": "flux",
        "flux-schnell": "flux",
        "sd3": "sd3",
        "lcm": "lcm",
    }
    assert models["flux"]["size_step_px"] == 16
    assert models["flux"]["defaults"]["guidance_scale"] == 3.5
    assert models["flux-schnell"]["defaults"]["steps"] == 4
    assert models["sd3"]["schedulers"] == ["flow_euler", "flow_heun", "flow_dpmpp_2m", "flow_unipc"]
    assert "inpaint" not in models["lcm"]["tasks"]


@pytest.mark.parametrize(
    ("model", "fields", "pointer"),
    [
        ("flux", {"negative_prompt": "blurred"}, "/negative_prompt"),
        ("flux-schnell", {"guidance_scale": 3.5}, "/guidance_scale"),
        ("flux", {"width": 72}, "/width"),
        ("sd3", {"scheduler": "euler"}, "/scheduler"),
        ("sd3", {"guidance_rescale": 0.5}, "/guidance_rescale"),
        ("lcm", {"negative_prompt": "blurred"}, "/negative_prompt"),
    ],
)
def test_what_a_family_has_no_use_for_is_refused_at_its_field(
    gateway: Gateway, model: str, fields: dict[str, Any], pointer: str
) -> None:
    with gateway.client() as client:
        reply = client.post("/v1/generations", json={"prompt": "x", "model": model, **fields})
    assert reply.status_code == 422
    assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]
