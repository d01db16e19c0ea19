-- A tenant switches one of its endpoints off or on.
-- ARGV: now, tenant, endpoint, '1' = on, who does it
-- Returns 1, or 0 where this tenant has no such endpoint.
local now, tenant, endpoint = clock(ARGV[1]), ARGV[2], ARGV[3]
local name, queue = k('endpoint', endpoint), k('endpoint_queue', endpoint)
mend(name, 'hash')
mend(queue, 'zset')
mend(k('outbox'), 'zset')
local seen = redis.call('HMGET', name, 'tenant', 'disabled_ms')
if seen[1] ~= tenant then return 0 end
local off = (seen[2] or '') ~= ''
local function note(before, after)
  note_change(ARGV[5], 'endpoint_switched', tenant,
    string.format('{"endpoint":"%s","enabled":[%s,%s]}', endpoint, before, after))
end
if ARGV[4] == '1' and off then
  -- It begins anew: what was held against it is forgotten.
  redis.call('HDEL', name, 'disabled_ms', 'disabled_reason', 'failing_since_ms', 'failures', 'hold_until_ms')
  note('false', 'true')
elseif ARGV[4] ~= '1' and not off then
  redis.call('HSET', name, 'disabled_ms', string.format('%d', now), 'disabled_reason', 'by_request')
  note('true', 'false')
  -- A sender notes at once what is not sent any more.
  if redis.call('EXISTS', queue) == 1 then redis.call('ZADD', k('outbox'), now, endpoint) end
end
return 1
