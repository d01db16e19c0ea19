-- A caller wants nothing of an upload kept: its objects are erased now, and once more when no form that was given out,
-- and no gateway that is just looking at the file, can store one again. Until then a mark stays.
-- ARGV: now, id, tenant, ms until the second time, prefix of its files, which is below its own
-- Returns 1, or 0 where this tenant has none such.
local now = clock(ARGV[1])
local id, tenant = ARGV[2], ARGV[3]
local upload = k('upload', id)
local known = redis.call('HMGET', upload, 'tenant', 'state', 'prefix', 'bytes')
if known[1] ~= tenant then return 0 end
if known[2] == 'erased' or (known[3] or '') == '' then return 1 end
redis.call('ZREM', k('tenant_uploads', tenant), id .. ' ' .. (known[4] or ''))
redis.call('DEL', upload)
redis.call('HSET', upload, 'tenant', tenant, 'state', 'erased')
redis.call('PEXPIREAT', upload, now + tonumber(ARGV[4]))
redis.call('ZADD', k('erasures'), now, known[3], now + tonumber(ARGV[4]), ARGV[5])
return 1
