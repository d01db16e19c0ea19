-- What happens to a job: shared by every script, behind `base` and `events`.

-- Every change of status passes here: the one place that knows which exist.
local function change(id, job, status, fields)
  if not TRANSITIONS[job.status][status] then
    return error('illegal transition ' .. job.status .. ' -> ' .. status)
  end
  local from = job.status
  job.status = status
  job.revision = tostring(number(job.revision) + 1)
  fields = fields or {}
  fields.status = status
  fields.revision = job.revision
  local flat = {}
  for name, value in pairs(fields) do
    job[name] = value
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  redis.call('HSET', k('job', id), unpack(flat))
  for _, counted in ipairs({ { k('tenant_counts', job.tenant) }, { k('pool', job.pool) } }) do
    if from == 'queued' or from == 'running' then redis.call('HINCRBY', counted[1], from, -1) end
    if status == 'queued' or status == 'running' then redis.call('HINCRBY', counted[1], status, 1) end
  end
  redis.call('PUBLISH', k('changes', id), job.revision .. ' ' .. status)
end

-- Makes a tenant choosable in one queue, unless it is at its running cap. It starts no earlier than the present
-- virtual time, so idling saves up nothing; no earlier than what it has already used, so leaving forgives nothing
-- (start-time fair queueing, Goyal et al. 1996).
local function activate(pool, priority, tenant)
  if redis.call('SISMEMBER', k('tenant_held', tenant), pool .. ' ' .. priority) == 1 then return end
  if redis.call('ZSCORE', k('active', pool, priority), tenant) then return end
  local used = number(redis.call('ZSCORE', k('idle', pool, priority), tenant))
  local present = number(redis.call('HGET', k('pool', pool), 'vtime_' .. priority))
  redis.call('ZADD', k('active', pool, priority), math.max(used, present), tenant)
  redis.call('ZREM', k('idle', pool, priority), tenant)
end

-- Takes a tenant out of the choice and remembers what it has used.
local function deactivate(pool, priority, tenant, vtime)
  redis.call('ZREM', k('active', pool, priority), tenant)
  local present = number(redis.call('HGET', k('pool', pool), 'vtime_' .. priority))
  if vtime > present then
    redis.call('ZADD', k('idle', pool, priority), vtime, tenant)
  end
end

local function enqueue(id, job)
  redis.call('ZADD', k('queue', job.pool, job.priority, job.tenant), number(job.sequence), id)
  activate(job.pool, job.priority, job.tenant)
end

local function dequeue(id, job)
  local queue = k('queue', job.pool, job.priority, job.tenant)
  redis.call('ZREM', queue, id)
  if redis.call('EXISTS', queue) == 0 then
    local score = redis.call('ZSCORE', k('active', job.pool, job.priority), job.tenant)
    if score then deactivate(job.pool, job.priority, job.tenant, tonumber(score)) end
    redis.call('SREM', k('tenant_held', job.tenant), job.pool .. ' ' .. job.priority)
    redis.pcall('SREM', k('held', job.pool, job.priority), job.tenant)
  end
end

-- The next deadline of a job, or nothing.
local function schedule_deadline(id, job)
  local due
  if job.status == 'queued' and number(job.start_by_ms) > 0 then due = number(job.start_by_ms) end
  if number(job.finish_by_ms) > 0 and (not due or number(job.finish_by_ms) < due) then due = number(job.finish_by_ms) end
  if due then
    redis.call('ZADD', k('deadlines'), due, id)
  else
    redis.call('ZREM', k('deadlines'), id)
  end
end

-- Rings once: the RQ job is a template with another id and pool each time. Bells are interchangeable.
local BELL
local function ring(pool)
  local queue = k('rq_queue', pool)
  BELL.rung = BELL.rung + 1
  local id = BELL.id .. BELL.rung
  redis.call('SADD', k('rq_queues'), queue)
  redis.call('HSET', k('rq_job', id), unpack(BELL.fields))
  redis.call('HSET', k('rq_job', id), 'origin', string.sub(queue, #k('rq_queue', '') - #'darkroom.' + 1))
  redis.call('RPUSH', queue, id)
end

-- Takes the bell that a client sends along: id prefix, number of fields × 2, fields … Returns where ARGV goes on.
local function take_bell(at)
  local count = tonumber(ARGV[at + 1])
  BELL = { id = ARGV[at], fields = {}, rung = 0 }
  for i = at + 2, at + 1 + count do BELL.fields[#BELL.fields + 1] = ARGV[i] end
  return at + 2 + count
end

-- A tenant has one running job less, or a higher cap: queues that were held back may be chosen again.
local function unhold(tenant)
  local held = k('tenant_held', tenant)
  for _, entry in ipairs(redis.call('SMEMBERS', held)) do
    redis.call('SREM', held, entry)
    local pool, priority = string.match(entry, '^(%S+) (%S+)$')
    redis.pcall('SREM', k('held', pool, priority), tenant)
    if redis.call('EXISTS', k('queue', pool, priority, tenant)) == 1 then
      activate(pool, priority, tenant)
      ring(pool)
    end
  end
end

local function hide_preview(id)
  redis.call('DEL', k('preview', id))
  redis.call('HSET', k('job', id), 'previewed', '0')
end

-- Ends the execution that holds a job.
local function let_go(id, job)
  hide_preview(id)
  redis.call('ZREM', k('leases'), id)
  if job.execution_id and job.execution_id ~= '' then redis.call('HDEL', k('executions'), job.execution_id) end
end

-- Counts a job that ended, in its pool and for its tenant: how fast places become free is what `Retry-After` says. No
-- damaged counter keeps a job from ending.
local function count_end(job, now)
  local slot = math.floor(now / LIMITS.ended_slot_ms)
  for _, of in ipairs({ { 'pool', job.pool }, { 'tenant', job.tenant } }) do
    local ended = k('ended', of[1], of[2], slot)
    if type(redis.pcall('INCR', ended)) == 'table' then redis.pcall('SET', ended, 1) end
    redis.call('PEXPIRE', ended, (LIMITS.ended_slots + 1) * LIMITS.ended_slot_ms)
  end
end

-- Any terminal state. `fields` come from the commit; an erased job keeps none of them.
local function finish(id, job, status, now, fields)
  local was = job.status
  if was == 'queued' then dequeue(id, job) end
  if was == 'running' then let_go(id, job) end
  if job.erase_requested == '1' then fields = {} end
  local due = job.erase_requested == '1' and now or now + number(job.retain_ms)
  fields.finished_ms = string.format('%d', now)
  fields.expires_ms = string.format('%d', due)
  fields.lease_ms = ''
  fields.phase = ''
  change(id, job, status, fields)
  redis.call('ZREM', k('deadlines'), id)
  if (job.object_prefix or '') ~= '' then redis.call('ZADD', k('erasures'), due, job.object_prefix) end
  tell(id, job, status, now)
  count_end(job, now)
  if was == 'running' then unhold(job.tenant) end
end

local function meter(tenant, now, counts)
  local usage = k('usage', tenant, math.floor(now / 86400000))
  for name, by in pairs(counts) do
    -- A damaged count begins anew: by now the job is accepted, or has ended, and an error would say otherwise.
    if type(redis.pcall('HINCRBY', usage, name, by)) == 'table' then redis.pcall('HSET', usage, name, by) end
  end
  redis.call('EXPIRE', usage, LIMITS.usage_ttl_s)
end

-- How long a tenant that has used the GPU seconds of its day has to wait for the next one (UTC), s; nil where some are
-- left, or where it has no limit. What has ended counts: nobody knows what is still being drawn will take.
local function quota_wait_s(tenant, limit_s, now)
  local most_ms = 1000 * count(limit_s)
  if most_ms < 1 then return nil end
  local day = math.floor(now / 86400000)
  -- Of a key that is no hash the reply is an error, which is no number.
  if count(redis.pcall('HGET', k('usage', tenant, day), 'gpu_ms')) < most_ms then return nil end
  return math.ceil(((day + 1) * 86400000 - now) / 1000)
end

-- What is left of a tenant's rate, or nil where it has none. The generic cell rate algorithm as virtual scheduling
-- (ITU-T I.371, annex A): kept is only until when what was accepted uses the rate up, and each job adds one `gap`.
local function rate_of(tenant, now)
  local per_minute = math.floor(number(redis.call('HGET', k('tenant', tenant), 'max_requests_per_minute')))
  if per_minute < 1 or per_minute > LIMITS.max_rate then return nil end
  local gap, burst = LIMITS.rate_window_ms / per_minute, math.ceil(per_minute / LIMITS.rate_parts)
  -- Whatever stands there (pcall: of any type), and wherever the clock was set back to, nobody waits longer than the
  -- window: what is beyond it was not written by this clock. A limit that was changed may leave more than its burst.
  local kept = number(redis.pcall('GET', k('tenant_rate', tenant)))
  if kept > now + LIMITS.rate_window_ms then kept = now end
  local full = now + burst * gap
  local used_until = math.max(now, math.min(kept, full))
  local room = burst - (used_until - now) / gap
  -- Sums of gaps are not exact; a millisecond is as fine as the clock.
  local remaining = math.floor(room + math.min(0.01, 1 / gap))
  local next_ms = remaining < burst and (remaining + 1 - room) * gap or 0
  return { per_minute = per_minute, used_until = used_until, gap = gap, full = full, remaining = remaining, next_ms = next_ms }
end

-- What so many more jobs of a tenant, `waiting` of them in each pool, are refused with now, and what of; nil where there
-- is room. The pool that is full, or s to wait where a quota is used up.
local function refusal(tenant, jobs, waiting, rate, default_cap, pool_cap, now)
  if rate and rate.remaining < jobs then return 'rate_limited', '' end
  local settings = redis.call('HMGET', k('tenant', tenant), 'max_queued', 'max_gpu_s_per_day')
  local wait_s = quota_wait_s(tenant, settings[2], now)
  if wait_s then return 'quota_exceeded', tostring(wait_s) end
  local cap = tonumber(settings[1] or '') or default_cap
  if cap and number(redis.call('HGET', k('tenant_counts', tenant), 'queued')) + jobs > cap then
    return 'tenant_full', ''
  end
  for pool, more in pairs(waiting) do
    if number(redis.call('HGET', k('pool', pool), 'queued')) + more > pool_cap then return 'pool_full', pool end
  end
end

-- Counts so many jobs, where as much was left; `rate` is stale afterwards.
local function use(tenant, rate, jobs)
  local used = math.min(rate.used_until + jobs * rate.gap, rate.full)
  redis.call('SET', k('tenant_rate', tenant), string.format('%.3f', used), 'PX', LIMITS.rate_window_ms)
end

-- A rate as scripts return it: per minute, remaining, s until one more; nothing where there is none.
local function told(rate)
  if not rate then return end
  return rate.per_minute, rate.remaining, math.ceil(rate.next_ms / 1000)
end

local function failure(code, message, retryable)
  return { error = cjson.encode({ code = code, message = message, retryable = retryable }) }
end

-- running → queued, or to where a cancel, a deadline or too many losses lead. The sequence is kept, so the job stands
-- at the front of its tenant's queue again.
local function take_back(id, job, now, fields)
  if job.cancel_requested == '1' then return finish(id, job, 'canceled', now, fields) end
  if number(job.finish_by_ms) > 0 and number(job.finish_by_ms) <= now then
    for name, value in pairs(failure('deadline_exceeded', 'The deadline passed before the generation ended.', true)) do
      fields[name] = value
    end
    return finish(id, job, 'expired', now, fields)
  end
  let_go(id, job)
  fields.execution_id = ''
  fields.agent_id = ''
  fields.lease_ms = ''
  fields.phase = ''
  fields.progress_step = '0'
  -- Its start was in time; only the end can still be late.
  fields.start_by_ms = ''
  change(id, job, 'queued', fields)
  enqueue(id, job)
  schedule_deadline(id, job)
  ring(job.pool)
  unhold(job.tenant)
end
