"""The same tiny models on both sides: as the engine holds them, and as a user of diffusers loads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from service.contract.catalog import CatalogEntry
from tests.fidelity.engine import EngineSide
from tests.fidelity.reference import Reference
from tests.models import BOXED_MODEL, tiny_model
from worker.pipelines.loading import load
from worker.pipelines.quiet import quiet_libraries


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    quiet_libraries()


@pytest.fixture(scope="session")
def engine_side() -> Callable[[str], EngineSide]:
    """Give the engine's own drawing code over the tiny model of a name."""

    @cache
    def make(name: str) -> EngineSide:
        return EngineSide(load(CatalogEntry(id=name.replace("_", "-"), source=str(tiny_model(name)))))

    return make


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Reference]:
    """Give plain diffusers over the tiny model of a name."""

    @cache
    def make(name: str) -> Reference:
        return Reference(tiny_model(name))

    return make


@pytest.fixture(scope="session")
def boxed_engine() -> EngineSide:
    """The model that ships with the package, computed in float32 from its float16 files."""
    return EngineSide(load(CatalogEntry(id="tiny-emoji", source=str(BOXED_MODEL))))
