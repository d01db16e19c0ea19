-- Gives one job to an execution. The same execution id gets the same job again, so a lost reply costs nothing.
-- ARGV: now, pool, execution id, agent id, lease (ms), '1' if the engine is empty, bell (see take_bell), number of
--       models that can be drawn with here, these models … (none = any), those of them that are warm … (none = all alike)
-- Returns {'claimed', field, value, …}, {'empty'}, or {'alone'}: a suspect has waited long enough and needs an
-- empty engine.
local now = clock(ARGV[1])
local pool, execution, agent, lease, idle = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1'
local drawable, warm = {}, {}
local counted = take_bell(7)
for i = counted + 1, #ARGV do (i <= counted + tonumber(ARGV[counted]) and drawable or warm)[ARGV[i]] = true end

local function answer(id)
  local reply = redis.call('HGETALL', k('job', id))
  table.insert(reply, 1, 'claimed')
  return reply
end

local known = redis.call('HGET', k('executions'), execution)
if known then return answer(known) end

-- Classes in which nothing waits that can be drawn here.
local barren = {}

-- The class whose turn it is: the highest that waits, but one that was passed over often enough goes first.
-- Counting turns instead of seconds keeps a flood of old low jobs from overtaking the high ones for good.
local function class()
  local chosen
  for _, priority in ipairs(PRIORITIES) do
    if not barren[priority] and redis.call('EXISTS', k('active', pool, priority)) == 1 then
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

-- An entry without a waiting job behind it: somebody else wrote into our Redis. It must not stop the queue.
local function strike_out(id, priority, tenant)
  dequeue(id, { pool = pool, priority = priority, tenant = tenant })
  redis.call('HINCRBY', k('pool', pool), 'queued', -1)
  redis.call('HINCRBY', k('tenant_counts', tenant), 'queued', -1)
end

local function pass_over(id)
  if id then redis.call('HINCRBY', k('job', id), 'passed', 1) end
end

-- Whether another agent that lives holds the model in memory.
local function warm_elsewhere(model)
  -- Those that spoke last first: behind them are, for a while, some that are gone.
  for _, other in ipairs(redis.call('ZREVRANGE', k('warm', model), 0, LIMITS.window)) do
    if other ~= agent and redis.call('EXISTS', k('agent', other)) == 1 then return true end
  end
  return false
end

-- Whether a job was left to an agent that has its model warm.
local left = false

-- First come among what can be drawn here; other models are for agents that have them. A warm model goes before a cold
-- one, also where another agent has it warm, and a suspect waits for an empty engine; both are passed over a bounded
-- number of times. Returns the job, or nil and whether a suspect's turn has come.
local function pick(priority, tenant)
  local suspect, cold, model
  for _, id in ipairs(redis.call('ZRANGE', k('queue', pool, priority, tenant), 0, LIMITS.window - 1)) do
    local seen = redis.call('HMGET', k('job', id), 'status', 'model', 'suspect', 'passed')
    local waited = number(seen[4]) >= LIMITS.turns_passed
    if seen[1] ~= 'queued' then
      strike_out(id, priority, tenant)
    elseif not next(drawable) or drawable[seen[2]] then
      if seen[3] == '1' and not idle then
        if not suspect and not cold and waited then return nil, true end
        suspect = suspect or id
      elseif not next(warm) or warm[seen[2]] or (not cold and waited) then
        pass_over(suspect)
        pass_over(cold)
        return id
      else
        model = model or seen[2]
        cold = cold or id
      end
    end
  end
  pass_over(suspect)
  -- Its turn has not come: the loop has taken one that waited.
  if cold and warm_elsewhere(model) then
    pass_over(cold)
    left = true
    return nil, false
  end
  return cold, false
end

-- The tenant that has used least of those with something to draw here. Returns tenant, virtual time, weight, job; no
-- job where a suspect's turn has come; nothing where there is none.
local function choose(priority)
  local rank = 0
  while rank < LIMITS.window do
    local entry = redis.call('ZRANGE', k('active', pool, priority), rank, rank, 'WITHSCORES')
    if #entry == 0 then return nil end
    local tenant, vtime = entry[1], tonumber(entry[2])
    local settings = redis.call('HMGET', k('tenant', tenant), 'max_running', 'weight')
    local cap = tonumber(settings[1] or '')
    if cap and number(redis.call('HGET', k('tenant_counts', tenant), 'running')) >= cap then
      deactivate(pool, priority, tenant, vtime)
      redis.call('SADD', k('tenant_held', tenant), pool .. ' ' .. priority)
      -- For the census alone: nothing that stands there keeps a claim from going on.
      redis.pcall('SADD', k('held', pool, priority), tenant)
    else
      local id, alone = pick(priority, tenant)
      if id or alone then return tenant, vtime, math.max(number(settings[2] or '1'), 0.001), id end
      if redis.call('ZSCORE', k('active', pool, priority), tenant) then rank = rank + 1 end
    end
  end
  return nil
end

local function expired(id, job)
  local start_by, finish_by = number(job.start_by_ms), number(job.finish_by_ms)
  if not ((start_by > 0 and start_by <= now) or (finish_by > 0 and finish_by <= now)) then return false end
  finish(id, job, 'expired', now, failure('deadline_exceeded', 'The deadline passed before a worker was free.', true))
  return true
end

-- Gives the chosen job to the execution.
local function start(id, job, priority, tenant, vtime, weight)
  note_turn(priority)
  redis.call('HSET', k('pool', pool), 'vtime_' .. priority, vtime)
  redis.call('ZREMRANGEBYSCORE', k('idle', pool, priority), '-inf', vtime)
  -- A job is paid for once, however often it has to be started.
  local price = 0
  if job.charged ~= '1' then price = number(job.cost) / weight end
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
end

while true do
  local priority = class()
  if not priority then
    -- The agent that has it may have answered its bell already.
    if left then ring(pool) end
    return { 'empty' }
  end
  local tenant, vtime, weight, id = choose(priority)
  if not tenant then
    barren[priority] = true
  elseif not id then
    return { 'alone' }
  else
    local job = read(id)
    -- The queue says where a job waits; a document that says otherwise was not written by us.
    job.pool, job.priority, job.tenant = pool, priority, tenant
    if not expired(id, job) then
      start(id, job, priority, tenant, vtime, weight)
      return answer(id)
    end
  end
end
