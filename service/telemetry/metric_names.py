"""Names of metrics, as dashboards and alerts know them: changing one breaks those of every operator.

Labels are models of the catalogue and words of ours. Never tenants, keys, prompts or anything else that callers choose:
each value of a label is a series that the metrics' server keeps.
"""

from __future__ import annotations

from typing import Final

#: Counter, by `model` and `kind` of call: calls that an engine made, each for one request or several.
ENGINE_CALLS: Final = "darkroom_engine_calls_total"
#: Histogram, by `model` and `kind`: rows of these calls. Their mean is what batching gains.
ENGINE_ROWS: Final = "darkroom_engine_rows"
#: Counter, by `model` and `kind`, s: the device's time for these calls.
ENGINE_CALL_SECONDS: Final = "darkroom_engine_call_seconds_total"
#: Counter: engine processes that took the place of one that had ended.
ENGINE_RESTARTS: Final = "darkroom_engine_restarts_total"
#: Histogram, by `phase`, s: where the time of succeeded generations went.
PHASE_SECONDS: Final = "darkroom_phase_seconds"
#: Counter, by `model` and `outcome`: executions that ended.
EXECUTIONS: Final = "darkroom_executions_total"
#: Counter, by `model`: pictures that were stored and committed.
IMAGES: Final = "darkroom_images_total"
#: Gauge: models in memory.
MODELS_WARM: Final = "darkroom_models_warm"
