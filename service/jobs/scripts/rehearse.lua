-- Whether a job would be accepted now, and how many of its line are before it; nothing is stored, and nothing used.
-- ARGV: now, tenant, pool, priority, cap of queued jobs in a pool
-- Returns {outcome, of, '', jobs ahead of it, rate (see told) …} as `submit` does, the outcome `created` where it would be.
local now = clock(ARGV[1])
local tenant, pool, priority = ARGV[2], ARGV[3], ARGV[4]
local rate = rate_of(tenant, now)
local refused, what = refusal(tenant, 1, { [pool] = 1 }, rate, nil, tonumber(ARGV[5]), now)
local ahead = redis.pcall('ZCARD', k('queue', pool, priority, tenant))
return { refused or 'created', what or '', '', tostring(type(ahead) == 'number' and ahead or 0), told(rate) }
