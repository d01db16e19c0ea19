-- A tenant wants an event sent again, whatever became of it: now, with its whole schedule, under the same id.
-- ARGV: now, tenant, event
-- Returns 'accepted', 'endpoint_off', or 'unknown' where this tenant has no such event or its job is erased.
local now, tenant, event = clock(ARGV[1]), ARGV[2], ARGV[3]
local name = k('event', event)
mend(name, 'hash')
local seen = redis.call('HMGET', name, 'job', 'tenant', 'endpoint')
if seen[2] ~= tenant or not seen[1] or not seen[3] then return 'unknown' end
local job = redis.call('HMGET', k('job', seen[1]), 'tenant', 'erase_requested', 'webhook_url')
if job[1] ~= tenant or job[2] == '1' or endpoint_of(tenant, job[3] or '') ~= seen[3] then return 'unknown' end
local endpoint = keep_endpoint(tenant, job[3], now)
if (redis.call('HGET', k('endpoint', endpoint), 'disabled_ms') or '') ~= '' then return 'endpoint_off' end
for _, zset in ipairs({ k('outbox'), k('endpoint_queue', endpoint), k('endpoint_sending', endpoint) }) do
  mend(zset, 'zset')
end
-- Being sent at this moment is as good.
if in_flight(event, endpoint, now) then return 'accepted' end
-- Claims are counted on: an earlier sender that speaks up late must not be taken for the one that has it now.
redis.call('HSET', name, 'state', 'pending', 'next_ms', string.format('%d', now), 'attempts', '0',
  'claims_before', redis.call('HGET', name, 'claims') or '0')
redis.call('HDEL', name, 'superseded')
redis.call('ZADD', k('endpoint_queue', endpoint), now, event)
schedule_endpoint(endpoint, now)
return 'accepted'
