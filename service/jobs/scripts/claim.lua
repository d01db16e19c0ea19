-- Gives one job to an execution. The same execution id gets the same job again, so a lost reply costs nothing.
-- ARGV: now, pool, execution id, agent id, lease (ms), '1' if the engine is empty, warm models …
-- Returns {'claimed', field, value, …}, {'empty'}, or {'alone'}: a suspect has waited long enough and needs an
-- empty engine.
local now = clock(ARGV[1])
local pool, execution, agent, lease, idle = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1'
local warm, any_warm = {}, false
for i = 7, #ARGV do
  warm[ARGV[i]] = true
  any_warm = true
end

local function answer(id)
  local reply = redis.call('HGETALL', k('job', id))
  table.insert(reply, 1, 'claimed')
  return reply
end

local known = redis.call('HGET', k('executions'), execution)
if known then return answer(known) end

-- The class whose turn it is: the highest that waits, but one that was passed over often enough goes first.
-- Counting turns instead of seconds keeps a flood of old low jobs from overtaking the high ones for good.
local function class()
  local chosen
  for _, priority in ipairs(PRIORITIES) do
    if redis.call('EXISTS', k('active', pool, priority)) == 1 then
      local passed = number(redis.call('HGET', k('pool', pool), 'passed_' .. priority))
      if not chosen or passed >= LIMITS.turns_passed then chosen = priority end
    end
  end
  return chosen
end

local function note_turn(chosen)
  local lower = false
  for _, priority in ipairs(PRIORITIES) do
    if lower and redis.call('EXISTS', k('active', pool, priority)) == 1 then
      redis.call('HINCRBY', k('pool', pool), 'passed_' .. priority, 1)
    end
    if priority == chosen then lower = true end
  end
  redis.call('HDEL', k('pool', pool), 'passed_' .. chosen)
end

-- First come, except that a warm model goes before a cold one and a suspect waits for an empty engine; both may be
-- passed over a bounded number of times.
local function pick(priority, tenant)
  local head
  for _, id in ipairs(redis.call('ZRANGE', k('queue', pool, priority, tenant), 0, LIMITS.window - 1)) do
    local seen = redis.call('HMGET', k('job', id), 'model', 'suspect', 'passed')
    local must_be_alone = seen[2] == '1' and not idle
    local fits = not must_be_alone and (not any_warm or warm[seen[1]])
    if not head then
      head = id
      if fits then return id end
      if number(seen[3]) >= LIMITS.turns_passed then
        if must_be_alone then return nil end
        return id
      end
    elseif fits then
      redis.call('HINCRBY', k('job', head), 'passed', 1)
      return id
    end
  end
  if head and redis.call('HGET', k('job', head), 'suspect') == '1' and not idle then
    redis.call('HINCRBY', k('job', head), 'passed', 1)
    return nil
  end
  return head
end

local function expired(id, job)
  local start_by, finish_by = number(job.start_by_ms), number(job.finish_by_ms)
  if not ((start_by > 0 and start_by <= now) or (finish_by > 0 and finish_by <= now)) then return false end
  finish(id, job, 'expired', now, failure('deadline_exceeded', 'The deadline passed before a worker was free.', true))
  return true
end

while true do
  local priority = class()
  if not priority then return { 'empty' } end
  local first = redis.call('ZRANGE', k('active', pool, priority), 0, 0, 'WITHSCORES')
  local tenant, vtime = first[1], tonumber(first[2])
  local settings = redis.call('HMGET', k('tenant', tenant), 'max_running', 'weight')
  local cap = tonumber(settings[1] or '')
  if cap and number(redis.call('HGET', k('tenant_counts', tenant), 'running')) >= cap then
    deactivate(pool, priority, tenant, vtime)
    redis.call('SADD', k('tenant_held', tenant), pool .. ' ' .. priority)
  else
    local id = pick(priority, tenant)
    if not id then return { 'alone' } end
    local job = read(id)
    if not expired(id, job) then
      note_turn(priority)
      redis.call('HSET', k('pool', pool), 'vtime_' .. priority, vtime)
      redis.call('ZREMRANGEBYSCORE', k('idle', pool, priority), '-inf', vtime)
      -- A job is paid for once, however often it has to be started.
      local price = 0
      if job.charged ~= '1' then price = number(job.cost) / math.max(number(settings[2] or '1'), 0.001) end
      redis.call('ZADD', k('active', pool, priority), vtime + price, tenant)
      dequeue(id, job)
      change(id, job, 'running', {
        attempt = tostring(number(job.attempt) + 1),
        execution_id = execution,
        agent_id = agent,
        lease_ms = string.format('%d', now + lease),
        started_ms = string.format('%d', now),
        progress_step = '0',
        progress_steps = '0',
        charged = '1',
        passed = '0',
      })
      redis.call('ZADD', k('leases'), now + lease, id)
      redis.call('HSET', k('executions'), execution, id)
      schedule_deadline(id, job)
      if job.told_start ~= '1' then
        redis.call('HSET', k('job', id), 'told_start', '1')
        tell(id, job, 'started', now)
      end
      return answer(id)
    end
  end
end
