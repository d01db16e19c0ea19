"""A model's own sampler runs as its folder has it, oddities included; others are built from it as diffusers builds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from service.contract.catalog import CatalogEntry
from tests.fidelity.cases import TASKS, Case
from tests.fidelity.engine import EngineSide, assert_equal
from tests.fidelity.reference import Reference
from tests.models import LIBRARY_WARNINGS, tiny_model
from worker.pipelines.loading import load

pytestmark = [
    *LIBRARY_WARNINGS,
    # Constructors of Stable Diffusion correct old configs and tell of it.
    pytest.mark.filterwarnings("ignore:.*configuration file of this scheduler:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]


def with_scheduler(model: str, folder: Path, **settings: Any) -> Path:
    """Return a copy of a tiny model whose scheduler config says otherwise; None removes a setting."""
    copied = shutil.copytree(tiny_model(model), folder / model)
    path = copied / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    index = copied / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", config["_class_name"]]}))
    return copied


ODD = [
    pytest.param(
        "sdxl", "ddim", {"_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 0}, id="clipped"
    ),
    pytest.param(
        "sd15", "ddim", {"_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 0}, id="old ddim"
    ),
    pytest.param("sd15", "pndm", {"skip_prk_steps": False}, id="with Runge-Kutta steps"),
    pytest.param("sd15", "pndm", {"steps_offset": None}, id="old pndm"),
    pytest.param("sd21", "ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, id="zero snr"),
    pytest.param(
        "sdxl",
        "dpmpp_2m_sde",
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        id="third order",
    ),
    pytest.param("sdxl", "euler", {"use_karras_sigmas": True}, id="karras by config"),
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("model", "own", "settings"), ODD)
def test_an_odd_own_sampler_equals_diffusers(
    tmp_path: Path, model: str, own: str, settings: dict[str, Any], task: str
) -> None:
    folder = with_scheduler(model, tmp_path, **settings)
    engine = EngineSide(load(CatalogEntry(id="odd", source=str(folder))))
    assert engine.model.card.scheduler == own
    assert_equal(engine, Reference(folder), Case(task=task, scheduler=own))


@pytest.mark.parametrize("scheduler", ["euler_a", "dpmpp_2m", "ddim", "unipc"])
@pytest.mark.parametrize(("model", "own", "settings"), ODD)
def test_another_sampler_over_an_odd_config_equals_diffusers(
    tmp_path: Path, model: str, own: str, settings: dict[str, Any], scheduler: str
) -> None:
    if scheduler == own:
        scheduler = "dpmpp_2s" if "rescale_betas_zero_snr" not in settings else "ddpm"
    folder = with_scheduler(model, tmp_path, **settings)
    engine = EngineSide(load(CatalogEntry(id="odd", source=str(folder))))
    assert_equal(engine, Reference(folder), Case(scheduler=scheduler))
