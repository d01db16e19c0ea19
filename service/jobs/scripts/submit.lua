-- Accepts one or more jobs of one tenant, all of them or none, or says why not. One round trip, safe to repeat: the same
-- ids are accepted once.
-- ARGV: now, idempotency record or '', body hash, record ttl (s), default cap of queued jobs per tenant or '',
--       cap of queued jobs in a pool, bell (see take_bell), number of staged prefixes, these prefixes …, then for each
--       job: number of fields × 2, document fields …
-- Returns {outcome, job ids (the pool, where one is full; s to wait, where a quota is used up), created_ms, jobs ahead of
-- each in its line, rate (see told) …}; created_ms is empty where nothing was created. What is refused, and what repeats an
-- accepted call, uses nothing of the tenant's rate.
local now = clock(ARGV[1])
local record, body, record_ttl_s = ARGV[2], ARGV[3], ARGV[4]
local staged, jobs, ids, waiting = {}, {}, {}, {}
local at = take_bell(7)
for i = at + 1, at + tonumber(ARGV[at]) do staged[#staged + 1] = ARGV[i] end
at = at + 1 + #staged
while at <= #ARGV do
  local job, last = {}, at + tonumber(ARGV[at])
  for i = at + 1, last, 2 do job[ARGV[i]] = ARGV[i + 1] end
  jobs[#jobs + 1], ids[#ids + 1] = job, job.id
  waiting[job.pool] = (waiting[job.pool] or 0) + 1
  at = last + 1
end
local tenant = jobs[1].tenant

local rate = rate_of(tenant, now)
local aheads = {}
local function answer(outcome, of, created_ms)
  return { outcome, of, created_ms, table.concat(aheads, ' '), told(rate) }
end

for _, id in ipairs(ids) do
  local accepted = redis.call('HGET', k('job', id), 'created_ms')
  if accepted then return answer('created', table.concat(ids, ' '), accepted) end
end

if record ~= '' then
  local known = redis.call('HMGET', k('idempotency', tenant, record), 'job', 'body')
  if known[1] then
    if known[2] ~= body then return answer('mismatch', known[1], '') end
    for id in string.gmatch(known[1], '%S+') do
      if redis.call('HGET', k('job', id), 'erase_requested') ~= '0' then return answer('gone', known[1], '') end
    end
    return answer('replayed', known[1], '')
  end
end

local refused, what = refusal(tenant, #jobs, waiting, rate, tonumber(ARGV[5]), tonumber(ARGV[6]), now)
if refused then return answer(refused, what, '') end

local urls = {}
for _, job in ipairs(jobs) do
  if (job.webhook_url or '') ~= '' then urls[job.webhook_url] = true end
end
if not endpoints_fit(tenant, urls, now) then return answer('endpoints_full', '', '') end
for url in pairs(urls) do keep_endpoint(tenant, url, now) end

redis.call('HINCRBY', k('tenant_counts', tenant), 'queued', #jobs)
for _, job in ipairs(jobs) do
  -- The submitter's clock only measures spans; the moments are Redis'.
  local skew = now - number(job.created_ms)
  for _, name in ipairs({ 'created_ms', 'start_by_ms', 'finish_by_ms' }) do
    if job[name] ~= '' then job[name] = string.format('%d', number(job[name]) + skew) end
  end
  job.sequence = tostring(redis.call('HINCRBY', k('pool', job.pool), 'sequence', 1))
  job.ahead = tostring(redis.call('ZCARD', k('queue', job.pool, job.priority, tenant)))
  aheads[#aheads + 1] = job.ahead
  local flat = {}
  for name, value in pairs(job) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  redis.call('HSET', k('job', job.id), unpack(flat))
  redis.call('ZADD', k('tenant_jobs', tenant), job.created_ms, job.id)
  enqueue(job.id, job)
  schedule_deadline(job.id, job)
  ring(job.pool)
end
-- Behind everything that a damaged key of this tenant could break off: what is counted here counts for all of them.
for pool, more in pairs(waiting) do
  redis.call('SADD', k('pools'), pool)
  redis.call('HINCRBY', k('pool', pool), 'queued', more)
end
if record ~= '' then
  redis.call('HSET', k('idempotency', tenant, record), 'job', table.concat(ids, ' '), 'body', body)
  redis.call('EXPIRE', k('idempotency', tenant, record), record_ttl_s)
end
if #staged > 0 then redis.call('ZREM', k('erasures'), unpack(staged)) end
meter(tenant, now, { requests = #jobs })
if rate then
  use(tenant, rate, #jobs)
  rate = rate_of(tenant, now)
end
return answer('created', table.concat(ids, ' '), jobs[1].created_ms)
