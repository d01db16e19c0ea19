-- Notes that a caller may send a file, or says why not. Safe to repeat: the same id is noted once.
-- ARGV: now, id, tenant, prefix, ms that it lives, ms after which its objects are erased then, uploads and bytes that a
--       tenant may have without a use, idempotency record or '', body hash, record ttl (s), field, value …
-- Returns {outcome, id, ms until room is made, fields of the upload …}.
local now = clock(ARGV[1])
local id, tenant, prefix = ARGV[2], ARGV[3], ARGV[4]
local record, body = ARGV[9], ARGV[10]

local function answer(outcome, of) return { outcome, of, 0, unpack(redis.call('HGETALL', k('upload', of))) } end

if redis.call('EXISTS', k('upload', id)) == 1 then return answer('created', id) end
if record ~= '' then
  local known = redis.call('HMGET', k('idempotency', tenant, record), 'job', 'body')
  if known[1] then
    if known[2] ~= body then return { 'mismatch', known[1], 0 } end
    local state = redis.call('HGET', k('upload', known[1]), 'state')
    if not state or state == 'erased' then return { 'gone', known[1], 0 } end
    return answer('replayed', known[1])
  end
end

local fields = {}
for i = 12, #ARGV, 2 do fields[ARGV[i]] = ARGV[i + 1] end

-- Those without a use, as 'id bytes': few enough to be added up, and so nothing that could drift.
local unused = k('tenant_uploads', tenant)
redis.call('ZREMRANGEBYSCORE', unused, '-inf', now)
local held = redis.call('ZRANGE', unused, 0, -1, 'WITHSCORES')
local bytes = number(fields.bytes)
for i = 1, #held, 2 do bytes = bytes + number(string.match(held[i], '(%d+)$')) end
if #held / 2 >= tonumber(ARGV[7]) or bytes > tonumber(ARGV[8]) then
  return { 'full', '', held[2] and math.max(0, math.ceil(number(held[2]) - now)) or 0 }
end

local expires = now + tonumber(ARGV[5])
fields.tenant, fields.prefix, fields.state = tenant, prefix, 'waiting'
fields.created_ms, fields.expires_ms = string.format('%d', now), string.format('%d', expires)
for name, value in pairs(fields) do redis.call('HSET', k('upload', id), name, value) end
redis.call('PEXPIREAT', k('upload', id), expires)
redis.call('ZADD', unused, expires, id .. ' ' .. fields.bytes)
redis.call('PEXPIREAT', unused, expires)
redis.call('ZADD', k('erasures'), expires + tonumber(ARGV[6]), prefix)
if record ~= '' then
  redis.call('HSET', k('idempotency', tenant, record), 'job', id, 'body', body)
  redis.call('EXPIRE', k('idempotency', tenant, record), ARGV[11])
end
return answer('created', id)
