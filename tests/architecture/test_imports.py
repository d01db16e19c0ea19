from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.architecture.repository import ROOT

GPU_LIBRARIES = {"torch", "diffusers", "transformers", "accelerate", "safetensors"}


def modules_of(package: str) -> list[str]:
    """Every module of a package, its `__main__` too, which must do nothing when it is only imported."""
    folder = ROOT / package.replace(".", "/")
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if path.stem != "__init__"
    )


def loaded_by(*modules: str) -> list[str]:
    """Every module that is loaded when a fresh interpreter imports these."""
    code = "\n".join(
        [*(f"import {module}" for module in modules), "import sys, json", "print(json.dumps([*sys.modules]))"]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def packages_loaded_by(*modules: str) -> set[str]:
    """Their top-level packages."""
    return {name.split(".")[0] for name in loaded_by(*modules)}


@pytest.mark.parametrize("package", ["service", "worker.agent"])
def test_no_module_of_it_brings_a_gpu_library(package: str) -> None:
    modules = modules_of(package)
    assert modules
    assert packages_loaded_by(*modules) & GPU_LIBRARIES == set()


def test_service_never_loads_the_worker() -> None:
    assert "worker" not in packages_loaded_by(*modules_of("service"))


def test_command_line_starts_without_the_libraries_of_its_commands() -> None:
    heavy = {"fastapi", "uvicorn", "boto3", "redis", "rq", "httpx", "pydantic_settings"}
    assert packages_loaded_by("service.cli.commands") & heavy == set()


def test_processes_that_are_not_traced_load_nothing_that_sends_spans() -> None:
    # redis loads OpenTelemetry's API by itself where it is installed.
    loaded = loaded_by("service.app", "worker.agent.__main__")
    assert [name for name in loaded if name.startswith(("service.telemetry.otel", "opentelemetry.exporter"))] == []


def test_engine_loads_nothing_of_jobs_storage_or_settings() -> None:
    loaded = loaded_by(*modules_of("worker.engine"), *modules_of("worker.pipelines"))
    assert [name for name in loaded if name.startswith(("service.jobs", "service.storage", "service.settings"))] == []


def test_bootstrap_needs_nothing_but_the_standard_library() -> None:
    code = "import service.cli.installation, sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    foreign = {name for name in done.stdout.split() if name not in sys.stdlib_module_names}
    assert foreign <= {"service", "__main__"}
