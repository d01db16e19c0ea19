"""Names of metrics, as dashboards and alerts know them: changing one breaks those of every operator.

Labels are models of the catalogue and words of ours. Never tenants, keys, prompts or anything else that callers choose:
each value of a label is a series that the metrics' server keeps.
"""

from __future__ import annotations

from typing import Final

# ── gateway ───────────────────────────────────────────────────────────────────────────────────────────────────────────

#: Counter, by `method`, `route` and `status` (`2xx` … `5xx`): requests that were answered.
REQUESTS: Final = "darkroom_requests_total"
#: Histogram, by `method` and `route`, s: their time, without what was waited for a generation.
REQUEST_SECONDS: Final = "darkroom_request_seconds"
#: Counter, by `route` and `code`: requests that were answered with a problem.
REFUSALS: Final = "darkroom_refusals_total"
#: Counter, by `priority`: generations that were accepted.
ACCEPTED: Final = "darkroom_generations_accepted_total"
#: Gauge: requests that are held until a generation ends.
WAITS_OPEN: Final = "darkroom_waits_open"
#: Gauge: streams of events that are open.
STREAMS_OPEN: Final = "darkroom_streams_open"
#: Gauge, by `pool` and `priority`: generations that wait. Every gateway shows the same: take the maximum, not the sum.
QUEUE_JOBS: Final = "darkroom_queue_jobs"
#: Gauge, by `pool` and `priority`, s: how long the oldest of them has waited. As above.
QUEUE_OLDEST_SECONDS: Final = "darkroom_queue_oldest_seconds"
#: Gauge, by `pool`: generations that run. As above.
RUNNING_JOBS: Final = "darkroom_running_jobs"
#: Gauge: used memory of Redis ÷ its `maxmemory`; absent where that is not set. As above.
REDIS_MEMORY_RATIO: Final = "darkroom_redis_memory_ratio"
#: Histogram, s: a probe of Redis, once a second, as the event loop sees it.
REDIS_SECONDS: Final = "darkroom_redis_seconds"
#: Histogram, s: a probe of the bucket, every ten seconds.
STORAGE_SECONDS: Final = "darkroom_storage_seconds"
#: Histogram, s: how late the event loop comes to a timer.
LOOP_LAG_SECONDS: Final = "darkroom_event_loop_lag_seconds"

# ── gateway and worker: each counts its own, and the sum is the service's ─────────────────────────────────────────────

#: Counter: leases that ran out and were taken back.
LEASES_TAKEN_BACK: Final = "darkroom_leases_taken_back_total"
#: Counter: generations that were ended by their deadline, by the clock.
DEADLINES_PASSED: Final = "darkroom_deadlines_passed_total"
#: Counter: bells that were rung anew for jobs that wait.
BELLS_RUNG: Final = "darkroom_bells_rung_total"

# ── sender ────────────────────────────────────────────────────────────────────────────────────────────────────────────

#: Counter, by `outcome` (`delivered`, `failed`, `gone`, `unsent`): attempts to deliver an event.
WEBHOOK_DELIVERIES: Final = "darkroom_webhook_deliveries_total"
#: Histogram, s: how long before its delivery an event happened.
WEBHOOK_AGE_SECONDS: Final = "darkroom_webhook_delivery_age_seconds"
#: Gauge, s: for how long the event that is due first has been due. Every sender shows the same: take the maximum.
WEBHOOK_LAG_SECONDS: Final = "darkroom_webhook_lag_seconds"
#: Counter, by `reason` (`gone`, `failing`): endpoints that were switched off.
WEBHOOK_ENDPOINTS_OFF: Final = "darkroom_webhook_endpoints_off_total"

# ── worker ────────────────────────────────────────────────────────────────────────────────────────────────────────────

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
#: Counter, by `model`, s: the device's time for generations that succeeded, as tenants are told it.
GPU_SECONDS: Final = "darkroom_gpu_seconds_total"
#: Gauge: models in memory.
MODELS_WARM: Final = "darkroom_models_warm"
#: Counter, by `model`: models that were read into memory.
MODEL_LOADS: Final = "darkroom_model_loads_total"
#: Histogram, s: how long reading one took.
MODEL_LOAD_SECONDS: Final = "darkroom_model_load_seconds"
#: Counter, by `model`: models that left memory for another.
MODEL_EVICTIONS: Final = "darkroom_model_evictions_total"
