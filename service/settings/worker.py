"""Settings of the agent process, and the environment that it hands to its children."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.contract.catalog import PoolName
from service.settings.groups import LogSettings, RedisSettings, StorageSettings
from service.settings.reading import read_settings
from service.settings.telemetry import MetricsSettings, TracingSettings


class AgentSettings(BaseSettings):
    """One agent and its engine child."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", env_ignore_empty=True, frozen=True)

    #: The pool served: the models of the catalogue that name it.
    pool: PoolName = "default"
    #: Path of a models.yaml; None = the one in the package.
    models: Path | None = None
    #: CPU threads of the engine; 0 = torch's own choice. On a shared machine fewer are often faster.
    engine_threads: int = Field(default=0, ge=0, le=256)
    #: Requests that the engine draws at once, sharing its calls; 0 = 16 on a GPU, 4 on a CPU. More raise what is drawn
    #: in all, and the time that each takes.
    engine_capacity: int = Field(default=0, ge=0, le=256)
    #: GiB that the models in memory may fill; 0 = 70 % of a GPU's memory, half of the machine's elsewhere. The others
    #: of the catalogue are read when they are wanted.
    model_memory_gib: float = Field(default=0.0, ge=0, le=65_536)
    #: s that a denoiser call of several requests should take at most, so that each gets on; 0 = as wide as fits.
    step_target_s: float = Field(default=0.0, ge=0, le=3600)
    #: s between two previews of a running job, at least; 0 = none.
    preview_s: float = Field(default=1.0, ge=0, le=86_400, allow_inf_nan=False)
    #: s that a stopping agent gives to what runs before it hands it back. Below Kubernetes' 30 s to the kill.
    drain_s: float = Field(default=25.0, ge=0, le=86_400)
    #: s without a sign from the engine before its first step of a kind has been measured; then 20 times the measure.
    patience_s: float = Field(default=600.0, ge=1, le=86_400)
    #: s without a sign from an engine that reads a model, from disk or hub, or compiles; never measured.
    load_s: float = Field(default=3600.0, ge=1, le=86_400)
    #: The Python module run as the engine child. Fault campaigns name `worker.engine.fake`; nobody else changes it.
    engine_module: str = Field(default="worker.engine", pattern=r"^[A-Za-z_][\w.]*$")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Everything the agent reads from its environment."""

    agent: AgentSettings
    redis: RedisSettings
    storage: StorageSettings
    log: LogSettings
    metrics: MetricsSettings
    tracing: TracingSettings

    @classmethod
    def from_environment(cls) -> WorkerSettings:
        """Read every group; raises `SettingsError` with one line that names the variable."""
        return cls(
            agent=read_settings(AgentSettings),
            redis=read_settings(RedisSettings),
            storage=read_settings(StorageSettings),
            log=read_settings(LogSettings),
            metrics=read_settings(MetricsSettings),
            tracing=read_settings(TracingSettings),
        )


#: What an engine may see: where libraries, devices, caches and temporary files are. No credentials, nothing of ours.
_ENGINE_MAY_SEE = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|TEMP|TMP|LD_LIBRARY_PATH|DYLD_\w+|VIRTUAL_ENV|XDG_CACHE_HOME|PYTHONPATH"
    r"|PYTHONDONTWRITEBYTECODE|CUDA_\w+|NVIDIA_\w+|ROCM_\w+|HIP_\w+|TORCH\w*|PYTORCH_\w+|TRITON_\w+|OMP_\w+|MKL_\w+"
    r"|HF_HOME|HF_HUB_\w+|HF_ENDPOINT|TRANSFORMERS_CACHE|HTTPS?_PROXY|NO_PROXY|https?_proxy|no_proxy"
    r"|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE"
)


def engine_environment() -> dict[str, str]:
    """Return what the engine child sees of our environment."""
    seen = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - handed on here, read nowhere else
        if _ENGINE_MAY_SEE.fullmatch(name)
    }
    # Threads that spin while they wait cost twentyfold where another process wants the cores (0.8 s became 19.7 s).
    # Code that comes with a model is never run; a hub's counters are nobody's business.
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **_compiler_cache(seen.get("XDG_CACHE_HOME")),
        **seen,
        "DIFFUSERS_DISABLE_CUSTOM_CODE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _compiler_cache(caches: str | None) -> dict[str, str]:
    """What torch compiles is kept as code, by default in a folder of /tmp that anybody may make before us."""
    try:
        folder = Path(caches or Path.home() / ".cache")
    except RuntimeError:
        return {}  # a user without a home, as containers have: the compiler's own folder is checked before it is used
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "darkroom" / "compiled")}
