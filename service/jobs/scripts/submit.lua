-- Accepts a job, or says why not. One round trip, safe to repeat: the same id is accepted once.
-- ARGV: now, id, idempotency record or '', body hash, record ttl (s), default cap of queued jobs per tenant or '',
--       cap of queued jobs in the pool, staged prefix or '', bell (see take_bell), document fields …
-- Returns {outcome, job id, created_ms, rate (see told) …}; created_ms is empty where nothing was created. What is
-- refused, and what repeats an accepted call, uses nothing of the tenant's rate.
local now = clock(ARGV[1])
local id, record, body, record_ttl_s = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job, flat = {}, {}
for i = take_bell(9), #ARGV, 2 do job[ARGV[i]] = ARGV[i + 1] end

local rate = rate_of(job.tenant, now)
local function answer(outcome, of, created_ms) return { outcome, of, created_ms, told(rate) } end

local accepted = redis.call('HGET', k('job', id), 'created_ms')
if accepted then return answer('created', id, accepted) end

if record ~= '' then
  local known = redis.call('HMGET', k('idempotency', job.tenant, record), 'job', 'body')
  if known[1] then
    if known[2] ~= body then return answer('mismatch', known[1], '') end
    local erased = redis.call('HGET', k('job', known[1]), 'erase_requested')
    if erased == '0' then return answer('replayed', known[1], '') end
    return answer('gone', known[1], '')
  end
end

if rate and rate.remaining < 1 then return answer('rate_limited', '', '') end
local settings = redis.call('HMGET', k('tenant', job.tenant), 'max_queued')
local cap = tonumber(settings[1] or '') or tonumber(ARGV[6])
if cap and number(redis.call('HGET', k('tenant_counts', job.tenant), 'queued')) >= cap then
  return answer('tenant_full', '', '')
end
if number(redis.call('HGET', k('pool', job.pool), 'queued')) >= tonumber(ARGV[7]) then
  return answer('pool_full', '', '')
end

-- The submitter's clock only measures spans; the moments are Redis'.
local skew = now - number(job.created_ms)
for _, name in ipairs({ 'created_ms', 'start_by_ms', 'finish_by_ms' }) do
  if job[name] ~= '' then job[name] = string.format('%d', number(job[name]) + skew) end
end
job.sequence = tostring(redis.call('HINCRBY', k('pool', job.pool), 'sequence', 1))
for name, value in pairs(job) do
  flat[#flat + 1] = name
  flat[#flat + 1] = value
end
redis.call('HSET', k('job', id), unpack(flat))
redis.call('ZADD', k('tenant_jobs', job.tenant), job.created_ms, id)
redis.call('SADD', k('pools'), job.pool)
redis.call('HINCRBY', k('pool', job.pool), 'queued', 1)
redis.call('HINCRBY', k('tenant_counts', job.tenant), 'queued', 1)
enqueue(id, job)
schedule_deadline(id, job)
if record ~= '' then
  redis.call('HSET', k('idempotency', job.tenant, record), 'job', id, 'body', body)
  redis.call('EXPIRE', k('idempotency', job.tenant, record), record_ttl_s)
end
if ARGV[8] ~= '' then redis.call('ZREM', k('erasures'), ARGV[8]) end
ring(job.pool)
meter(job.tenant, now, { requests = 1 })
if rate then
  use(job.tenant, rate)
  rate = rate_of(job.tenant, now)
end
return answer('created', id, job.created_ms)
