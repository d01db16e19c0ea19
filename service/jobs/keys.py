"""Every Redis key of Darkroom. The Lua scripts get the same table, so that a key is spelt in one place.

All keys live on one primary (Sentinel or managed, not Cluster): the scripts derive keys from what they read.
"""

from __future__ import annotations

from types import MappingProxyType

KEYS: MappingProxyType[str, str] = MappingProxyType(
    {
        # hash: one job document (`service.jobs.documents`)
        "job": "dr:job:%s",
        # string, a WebP file: what a running job looks like so far
        "preview": "dr:preview:%s",
        # hash {job, body}: tenant, record → the job that an Idempotency-Key created
        "idempotency": "dr:idem:%s:%s",
        # hash: a tenant's settings (`service.tenants`); scripts read weight and the limits but top_priority
        "tenant": "dr:tenant:%s",
        # zset job → created_ms: a tenant's listing
        "tenant_jobs": "dr:tenant:%s:jobs",
        # hash {queued, running}
        "tenant_counts": "dr:tenant:%s:counts",
        # string, ms: until when a tenant's rate is used up by what was accepted of it; gone after a minute
        "tenant_rate": "dr:tenant:%s:rate",
        # set of "pool priority": queues of a tenant that is at its running cap
        "tenant_held": "dr:tenant:%s:held",
        # hash secret → "created_ms until_ms sealed": what a tenant's webhooks are signed with
        "webhook_secrets": "dr:tenant:%s:webhook_secrets",
        # set of tenants, by pool and priority: those with jobs waiting that are at their running cap
        "held": "dr:held:%s:%s",
        # hash {requests, images, gpu_ms}, by tenant and day (days since 1970, UTC)
        "usage": "dr:usage:%s:%s",
        # string, a number: jobs that ended, by `pool` or `tenant`, its name, and slot of time
        "ended": "dr:ended:%s:%s:%s",
        # set of pool names
        "pools": "dr:pools",
        # hash {sequence, queued, running, passed_*, vtime_*}
        "pool": "dr:pool:%s",
        # zset job → sequence, by pool, priority, tenant
        "queue": "dr:queue:%s:%s:%s",
        # zset tenant → virtual start time, by pool and priority: tenants that a claim may choose
        "active": "dr:active:%s:%s",
        # zset tenant → virtual finish time, by pool and priority: tenants with nothing to choose, not yet forgiven
        "idle": "dr:idle:%s:%s",
        # zset job → end of its lease, ms
        "leases": "dr:leases",
        # hash execution → job, while it is claimed
        "executions": "dr:executions",
        # zset job → next deadline, ms
        "deadlines": "dr:deadlines",
        # zset object prefix → when it is due to be erased, ms
        "erasures": "dr:erasures",
        # zset endpoint → when a sender has to look at its queue, ms
        "outbox": "dr:outbox",
        # hash: a generation's event and what became of it (`service.jobs.outbox`)
        "event": "dr:event:%s",
        # hash {tenant, url, created_ms, disabled_ms, disabled_reason (gone, failing, by_request), failing_since_ms,
        # failures, hold_until_ms, last_success_ms}: a tenant and an exact URL; its id is "ep_" and a SHA-1 over both
        "endpoint": "dr:endpoint:%s",
        # zset event → when it is due to be sent, ms; of one that is being sent, when the sender's lease ends
        "endpoint_queue": "dr:endpoint:%s:queue",
        # zset event → end of the sender's lease, ms: events that are being sent
        "endpoint_sending": "dr:endpoint:%s:sending",
        # zset endpoint → when a generation last named it, or told it something, ms
        "tenant_endpoints": "dr:tenant:%s:endpoints",
        # zset event → created_ms: a tenant's delivery log
        "tenant_deliveries": "dr:tenant:%s:deliveries",
        # zset event → end of the sender's lease, ms
        "tenant_sending": "dr:tenant:%s:sending",
        # zset agent → until when it counts as alive, ms
        "agents": "dr:agents",
        # string, JSON: what an agent holds
        "agent": "dr:agent:%s",
        # zset of agents that hold a model in memory, by when they will have fallen silent; it goes with the last
        "warm": "dr:warm:%s",
        # hash model → card, JSON
        "models": "dr:models",
        # hash: by kind of device, what calls of an engine cost (`service.jobs.costs`)
        "costs": "dr:costs:%s",
        # stream: changes of tenants, keys and webhook endpoints (`service.tenants.audit`)
        "audit": "dr:audit",
        # hash: what a caller said of a file that it sends, and what was found (`service.jobs.uploads`)
        "upload": "dr:upload:%s",
        # zset "upload bytes" → when it expires, ms: uploads of a tenant that no generation has used
        "tenant_uploads": "dr:tenant:%s:uploads",
        # string: the process that looks ahead for all gateways, under a lease
        "forecaster": "dr:forecaster",
        # string, JSON (`service.contract.forecast`): what lies ahead of waiting and running jobs; good for seconds
        "forecast": "dr:forecast",
        # string: the key of the MAC in ids
        "secret": "dr:secret",
        # pub/sub: a job changed; the message is "revision status"
        "changes": "dr:changes:%s",
        # pub/sub: orders to one agent
        "orders": "dr:orders:%s",
        # RQ's own names (rq 2.12), written by the submit script
        "rq_queues": "rq:queues",
        "rq_queue": "rq:queue:darkroom.%s",
        "rq_job": "rq:job:%s",
    }
)


def key(name: str, *parts: str) -> str:
    """Return the Redis key `name` for `parts`."""
    return KEYS[name] % parts
