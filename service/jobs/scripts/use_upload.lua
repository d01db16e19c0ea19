-- A generation is to use an upload: from now on it lives anew. One whose file was not looked at yet stays as it is,
-- unless what the look found is told along. It counts as unused until a generation with it was accepted: those that are
-- refused would make room without end.
-- ARGV: now, id, tenant, ms that it lives, ms after which its objects are erased then, field, value …
-- Returns its fields, or {} where this tenant has none such.
local now = clock(ARGV[1])
local id, tenant = ARGV[2], ARGV[3]
local upload = k('upload', id)
local known = redis.call('HMGET', upload, 'tenant', 'state', 'prefix', 'bytes', 'expires_ms')
if known[1] ~= tenant or known[2] == 'erased' or (known[3] or '') == '' or number(known[5]) <= now then return {} end
if #ARGV > 5 then
  for i = 6, #ARGV, 2 do redis.call('HSET', upload, ARGV[i], ARGV[i + 1]) end
  redis.call('HSET', upload, 'state', 'ready')
elseif known[2] ~= 'ready' then
  return redis.call('HGETALL', upload)
end
local expires = now + tonumber(ARGV[4])
redis.call('HSET', upload, 'expires_ms', string.format('%d', expires))
redis.call('PEXPIREAT', upload, expires)
redis.call('ZADD', k('erasures'), expires + tonumber(ARGV[5]), known[3])
local unused = k('tenant_uploads', tenant)
if redis.call('ZADD', unused, 'XX', 'CH', expires, id .. ' ' .. (known[4] or '')) == 1 then
  redis.call('PEXPIREAT', unused, expires)
end
return redis.call('HGETALL', upload)
