-- Notes that inputs are about to be stored: they are erased after a while unless a submit names them. Not so where the
-- tenant's rate or quota would refuse that submit now: nothing is to be stored for it.
-- ARGV: now, tenant, jobs of the submit, ms after which it is erased, prefixes …
-- Returns {} when they were noted, else what is told of the rate, or {s to wait} where the quota is used up.
local now = clock(ARGV[1])
local rate = rate_of(ARGV[2], now)
if rate and rate.remaining < tonumber(ARGV[3]) then return { told(rate) } end
local wait_s = quota_wait_s(ARGV[2], redis.call('HGET', k('tenant', ARGV[2]), 'max_gpu_s_per_day'), now)
if wait_s then return { wait_s } end
for i = 5, #ARGV do redis.call('ZADD', k('erasures'), now + tonumber(ARGV[4]), ARGV[i]) end
return {}
