-- A caller wants nothing of an upload kept: its objects are erased now, and once more when no form that was given out,
-- and no gateway that is just looking at the file, can store one again. Until then a mark stays. One without a use counts
-- for as long as its form lives: who makes and erases uploads in turn could store, and have us note, as much as they like.
-- ARGV: now, id, tenant, ms that a form lives, ms from then until the second time, prefix of its files, which is below its
--       own
-- Returns 1, or 0 where this tenant has none such.
local now = clock(ARGV[1])
local id, tenant = ARGV[2], ARGV[3]
local upload = k('upload', id)
local known = redis.call('HMGET', upload, 'tenant', 'state', 'prefix', 'bytes')
if known[1] ~= tenant then return 0 end
if known[2] == 'erased' or (known[3] or '') == '' then return 1 end
local closed = now + tonumber(ARGV[4])
local unused, entry = k('tenant_uploads', tenant), id .. ' ' .. (known[4] or '')
local until_ms = number(redis.call('ZSCORE', unused, entry) or '')
if until_ms > closed then redis.call('ZADD', unused, closed, entry) end
redis.call('DEL', upload)
redis.call('HSET', upload, 'tenant', tenant, 'state', 'erased')
redis.call('PEXPIREAT', upload, closed + tonumber(ARGV[5]))
redis.call('ZADD', k('erasures'), now, known[3], closed + tonumber(ARGV[5]), ARGV[6])
return 1
